"""Contract suites to call from pytest, for all that users can write: one for each kind.

::

    from amc.testing import (check_criterion, check_latency_model, check_operator, check_preparation, check_recovery,
                             check_search)

    def test_my_model():
        check_latency_model(MyModel)

    def test_my_criterion():
        check_criterion("my_criterion.py:by_variance")

    def test_my_searcher():
        check_search(my_search)

    def test_my_operator():
        check_operator(MyOperator(), *example_network(), before=[Channels()])

    def test_my_recovery():
        check_recovery("my_recovery.py:slowly", {"lr": 0.01})

    def test_my_preparation():
        check_preparation("my_preparation.py:mine", {"strength": 0.01})
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amc.deploy.export import export_onnx, file_layout
from amc.graph.build import build_graph
from amc.importance.contract import check_criterion
from amc.latency import LatencyModel, LatencyProbe, LatencyProblem, Predictor, layer_shapes
from amc.operators.channels import legal_widths
from amc.operators.contract import check_operator
from amc.operators.operator import NetworkFacts
from amc.search.contract import check_search
from amc.task.models import build_model
from amc.train.contract import check_recovery
from amc.train.sparsify.contract import check_preparation

__all__ = [
    "check_criterion",
    "check_latency_model",
    "check_operator",
    "check_preparation",
    "check_recovery",
    "check_search",
    "example_network",
    "example_problem",
]


def example_network() -> tuple[NetworkFacts, torch.Tensor]:
    """A small residual network for 1×8×8 images, untrained, its channels in random order, and two inputs of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = build_model("resnet8", False, 1, 10).eval(), torch.randn(2, 1, 8, 8)
        graph = build_graph(model, example[:1])
        orders = [torch.randperm(group.channels).numpy() for group in graph.sites]
    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        path = Path(folder, "original.onnx")
        export_onnx(model, example[:1], path)
        layout = file_layout(path, graph, model)
    return NetworkFacts(model, graph, layout, orders), example


@contextmanager
def example_problem() -> Iterator[LatencyProblem]:
    """A small residual network for 3×32×32 images, untrained, as a latency model is told of it."""
    torch.manual_seed(0)
    model, example = build_model("resnet8", False, 3, 10).eval(), torch.zeros(1, 3, 32, 32)
    graph = build_graph(model, example)
    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        original = Path(folder, "original.onnx")
        export_onnx(model, example, original)
        probe = LatencyProbe(original, file_layout(original, graph, model), example.numpy())
        yield LatencyProblem(
            full={s.name: s.channels for s in graph.sites},
            settings={s.name: legal_widths(s.channels, 0.2, 0) for s in graph.sites},
            layers=layer_shapes(graph),
            original=original,
            input_shapes={"input": tuple(example.shape)},
            threads=1,
            cut=lambda widths: probe.cut([np.arange(width) for width in widths.values()]),
            original_ms=probe.original_ms,
        )


def check_latency_model(
    make: Callable[[], LatencyModel],
    problem: LatencyProblem | None = None,
    policies: int = 30,
    tolerance: float = 0.05,
    milliseconds: float = 0.1,
) -> None:
    """Raise AssertionError or LatencyError, saying why, unless the models that ``make()`` gives can be searched by.

    They are asked for ``policies`` random policies of ``problem`` (`example_problem` where there is none), one a
    site at least unless they measure: numbers must be finite and above 0, in milliseconds by all appearance, the
    same when asked again and by ``predict_all``, and given within ``milliseconds`` each, but by a model that
    measures. Widening a site may make the network faster by ``tolerance`` of the original's time at most.
    """
    if problem is None:
        with example_problem() as own:
            return check_latency_model(make, own, policies, tolerance, milliseconds)
    predictor = Predictor(make(), problem)
    rows = _random(problem, policies if predictor.measures else max(policies, len(problem.full)))
    found = predictor(rows)
    _check_same(predictor, Predictor(make(), problem), problem, rows, found)
    _check_widths(predictor, problem, rows, found, tolerance)
    if not predictor.measures:
        took = float(np.percentile(list(_times(predictor, problem, rows)), 25))  # however busy the machine is
        assert took <= milliseconds, f"a prediction takes {took:.3g} ms, but should take {milliseconds:g} ms at most"
    return None


def _random(problem: LatencyProblem, count: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    return np.array([[rng.choice(s) for s in problem.settings.values()] for _ in range(count)])


def _times(predictor: Predictor, problem: LatencyProblem, rows: NDArray[np.int64]) -> Iterator[float]:
    """Milliseconds of every prediction."""
    for row in rows.tolist():
        widths = dict(zip(problem.full, row, strict=True))
        start = time.perf_counter()
        predictor.predict(widths)
        yield (time.perf_counter() - start) * 1e3


def _check_same(
    first: Predictor, second: Predictor, problem: LatencyProblem, rows: NDArray[np.int64], found: NDArray[np.float64]
) -> None:
    """The same policy takes the same, whoever is asked and however."""
    again = first(rows)
    assert np.allclose(again, found, rtol=1e-9), "predictions differ when asked for again"
    for row, ms in zip(rows.tolist(), found, strict=True):
        widths = dict(zip(problem.full, row, strict=True))
        one = first.predict(widths)
        assert np.isclose(one, ms, rtol=1e-6), f"predict gives {one:g} ms where predict_all gives {ms:g}: {widths}"
    if not first.measures:
        assert np.allclose(second(rows), found, rtol=1e-9), "another instance predicts something else"


def _check_widths(
    predictor: Predictor,
    problem: LatencyProblem,
    rows: NDArray[np.int64],
    found: NDArray[np.float64],
    tolerance: float,
) -> None:
    """Wider is not much faster: the action wall takes the narrowest network for the fastest."""
    full, smallest = predictor.original, predictor.predict(problem.smallest)
    assert smallest < full, (
        f"the smallest network takes {smallest:g} ms, the original {full:g} ms: widths do not matter"
    )
    slack = tolerance * full
    assert smallest <= found.min() + slack, f"a network takes {found.min():g} ms, the smallest of all {smallest:g} ms"
    wider = rows.copy()
    sites = np.arange(len(rows)) % rows.shape[1]
    wider[np.arange(len(rows)), sites] = np.array(list(problem.full.values()))[sites]
    for row, site, before, after in zip(rows, sites, found, predictor(wider), strict=True):
        name = list(problem.full)[site]
        assert after >= before - slack, (
            f"widening {name} from {row[site]} to {problem.full[name]} makes the network faster: "
            f"{before:g} ms before, {after:g} ms after"
        )
