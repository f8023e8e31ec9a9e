"""Sensitivities of the loss to errors of layers: against gradients of single samples, and in errors of sites."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import EvaluationSettings
from amc.graph.build import build_graph
from amc.reconstruction.least_squares import least_squares
from amc.reconstruction.moments import collect, readers
from amc.reconstruction.rows import elements
from amc.reconstruction.sensitivity import sensitivities
from amc.runtime.memory import Memory
from amc.task import make_task
from amc.task.splits import InMemorySplit, Splits

SAMPLES = 40

LOSS = EvaluationSettings("loss")


def task_of(model: nn.Module, *shape: int, classes: int = 4):
    torch.manual_seed(1)
    x = torch.randn(4 * SAMPLES, *shape)
    parts = [InMemorySplit(x[i::4], torch.arange(SAMPLES) % classes) for i in range(4)]
    return make_task("small", model.eval(), Splits(*parts, classes=classes, source="noise"), torch.device("cpu"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 16, 4),
    )  # fmt: skip


@pytest.mark.parametrize("memory", [None, Memory(1 << 30)])
def test_sensitivities_are_squares_of_per_sample_gradients(memory):
    model = network()
    task = task_of(model, 3, 8, 8)
    found = sensitivities(task, build_graph(model, task.example).layers, memory)
    squares = {"2": torch.zeros(5), "6": torch.zeros(4)}
    values: dict[str, list[torch.Tensor]] = {"2": [], "6": []}
    images, labels = task.splits.calibration.fetch(torch.arange(SAMPLES))
    for image, label in zip(images, labels, strict=True):
        inner = model[:3](image[None]).detach().requires_grad_(True)
        outer = model[3:](inner)
        loss = nn.functional.cross_entropy(outer, label[None])
        for name, output in (("2", inner), ("6", outer)):
            (gradient,) = torch.autograd.grad(loss, output, retain_graph=True)
            squares[name] += (gradient**2).flatten(2).sum((0, 2)) if gradient.ndim > 2 else (gradient**2)[0]
            values[name].append(output.detach().transpose(0, 1).flatten(1))
    for name, own in squares.items():
        expected = 0.5 * own / SAMPLES
        torch.testing.assert_close(found[name].channels.float(), expected, rtol=1e-4, atol=1e-9)
        variance = torch.cat(values[name], 1).var(1, correction=0)
        assert found[name].whole == pytest.approx(float((expected * variance).sum()), rel=1e-4)


def test_sensitivities_of_the_distance_are_squares_of_the_jacobian():
    model = network()
    task = task_of(model, 3, 8, 8)
    found = sensitivities(task, build_graph(model, task.example).layers, logit_mse=True)
    torch.testing.assert_close(found["6"].channels.float(), torch.full((4,), 1 / 4))
    images, _ = task.splits.calibration.fetch(torch.arange(SAMPLES))
    inner = model[:3](images).detach().requires_grad_(True)
    outer = model[3:](inner)
    slopes = [torch.autograd.grad(outer[:, k].sum(), inner, retain_graph=True)[0] for k in range(4)]
    expected = sum((slope**2).sum((2, 3)).mean(0) / 4 for slope in slopes)
    torch.testing.assert_close(found["2"].channels.float(), expected, rtol=0.25, atol=0)
    assert float(found["2"].channels.sum()) == pytest.approx(float(expected.sum()), rel=0.1)


def test_without_one_vector_of_logits_per_sample_the_loss_is_used():
    model = network()
    task = task_of(model, 3, 8, 8)
    dense = replace(task, objective=replace(task.objective, logits=lambda outputs: outputs[:, :, None]))
    layers = build_graph(model, task.example).layers
    by_loss, found = sensitivities(task, layers), sensitivities(dense, layers, logit_mse=True)
    assert all(torch.equal(found[name].channels, own.channels) for name, own in by_loss.items())


def test_data_sorted_by_class_are_sampled_from_all_classes(monkeypatch):
    monkeypatch.setattr("amc.reconstruction.sensitivity.IMAGES", SAMPLES // 2)
    model = network()
    task = task_of(model, 3, 8, 8)
    x, labels = task.splits.calibration.fetch(torch.arange(SAMPLES))
    ordered = InMemorySplit(x, labels.sort().values)
    seen: list[int] = []

    def listening(outputs, targets):
        seen.extend(targets.tolist())
        return task.objective.loss(outputs, targets)

    splits = replace(task.splits, calibration=ordered)
    heard = replace(task, splits=splits, objective=replace(task.objective, loss=listening))
    assert set(sensitivities(heard, build_graph(model, task.example).layers)) == {"0", "2", "6"}
    assert len(seen) == SAMPLES // 2
    assert set(seen) == {0, 1, 2, 3}


class Branches(nn.Module):
    """Two equal branches; the second hardly affects the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)) for _ in range(2))
        self.quiet.load_state_dict(self.loud.state_dict())
        self.last = nn.Linear(4 * 16, 4)

    def forward(self, x):
        return self.last((self.loud(x) + 0.01 * self.quiet(x)).flatten(1))


def test_errors_that_hardly_change_the_loss_count_less():
    model = Branches()
    task = task_of(model, 3, 8, 8)
    graph = build_graph(model, task.example)
    moments = collect(task, readers(graph, model), 0)
    evaluator = Evaluator(task, graph, [torch.arange(s.channels) for s in graph.sites], moments, LOSS)
    at = {site.name: number for number, site in enumerate(graph.sites)}
    loud, quiet = (evaluator.site_error(at[f"{name}.0"], 4) for name in ("loud", "quiet"))
    assert 0 < quiet < 1e-3 * loud
    assert evaluator.site_error(at["loud.0"], 2) > loud


class Rounded(nn.Module):
    """Has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        with torch.no_grad():
            x = self.second(self.first(x).relu()).relu()
        return self.last(x)


def test_without_gradients_shares_of_variance_are_used():
    model = Rounded()
    task = task_of(model, 6)
    graph = build_graph(model, task.example)
    assert "first" not in sensitivities(task, graph.layers)
    moments = collect(task, readers(graph, model), 0)
    evaluator = Evaluator(task, graph, [torch.arange(s.channels) for s in graph.sites], moments, LOSS)
    assert all(evaluator.site_error(number, 3) > 0 for number in range(len(graph.sites)))


def test_a_network_that_was_made_without_gradients():
    with torch.inference_mode():
        made = network()
    plain, other = (task_of(model, 3, 8, 8) for model in (network(), made))
    known, found = (sensitivities(task, build_graph(task.model, task.example).layers) for task in (plain, other))
    assert {name: s.whole for name, s in found.items()} == {name: s.whole for name, s in known.items()}


class Concatenated(nn.Module):
    """One layer reads two sites, a narrow and a wide one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 12, 3)
        self.reader, self.last = nn.Conv2d(16, 4, 3), nn.Linear(4 * 16, 4)

    def forward(self, x):
        both = torch.cat([self.narrow(x), self.wide(x)], 1).relu()
        return self.last(self.reader(both).relu().flatten(1))


def test_errors_of_sites_with_a_common_reader_equal_regressions():
    model = Concatenated()
    task = task_of(model, 3, 8, 8)
    graph = build_graph(model, task.example)
    moments = collect(task, readers(graph, model), 0)
    orders = [torch.arange(s.channels).flip(0) for s in graph.sites]
    evaluator = Evaluator(task, graph, orders, moments, LOSS)
    own = sensitivities(task, graph.layers)["reader"].channels
    whole = torch.arange(16)
    for index, site in enumerate(graph.sites[:2]):
        start = 0 if site.channels == 4 else 4
        weight = model.reader.weight.detach().flatten(1).double()
        for width in (site.channels, 3, 1):
            gone = (whole >= start) & (whole < start + site.channels - width)  # the last come first in the order
            keep = elements(whole[~gone], 9)
            solved, _ = least_squares(weight, moments["reader"], keep)
            lost = weight.clone()
            lost[:, keep] -= solved
            expected = ((lost @ moments["reader"].covariance) * lost).sum(1)
            assert evaluator.site_error(index, width) == pytest.approx(
                float((own * expected).sum()), rel=0.02, abs=1e-9
            )
