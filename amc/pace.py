"""Latency in a run: measured, predicted, limited, corrected, and the promise.

The search asks a latency model. What it is wrong by near the budget is found out on the runtime, at three times: on a
few policies before the search, on the best ones after it, and on the fine-tuned network. Each time the model is
corrected by a factor; where the budget then does not hold, the run goes back and searches under the corrected model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from amc import nested
from amc.budget import Space, parse_limit
from amc.config import Config
from amc.errors import BudgetError, ExportError, LatencyError
from amc.export import export_onnx, file_layout
from amc.graph import Graph
from amc.journal import Journal
from amc.latency import LatencyProbe, LatencyProblem, Measurement, layer_shapes
from amc.latency.learned import Sample, Tables
from amc.latency.operators import names, operators
from amc.latency.profile import LearnedModel, Profile, collect
from amc.latency.quiet import Timing
from amc.policy import Choice, legal_widths
from amc.provenance import cpu_name, runtime_version
from amc.resources import CostModel, Floats
from amc.surgery import Dresser
from amc.task import Task

Predict = Callable[[ArrayLike], NDArray[np.float64]]
"""Milliseconds ``[B]`` of widths ``[B, S]``."""

AIMED, SESSIONS = 4, 3
"""Policies near the budget that are measured before the search, and sessions for each measured policy."""
CORRECTIONS = 6
"""So often a run is corrected before it gives up."""
MARGIN, TIGHT = 0.015, 0.005
"""By so much less than the limit is aimed at, since a measurement of some seconds leaves as much open; and by so much
less must a policy take that is fine-tuned."""
NOTHING = 0.02
"""A share of what a site's whole range is worth; a step that saves less saves nothing."""


class Bench:
    """Measures policies on ONNX Runtime: the original's file, cut, or exported anew where the cut file does not run."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        original: Path,
        threads: int,
        original_ms: float | None = None,
        alone: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """``original_ms``: what the original takes, where that is known; ``alone`` keeps other runs off the machine."""
        self._task, self.full = task, tuple(site.channels for site in graph.sites)
        self._layout = file_layout(original, graph, task.model)
        self._inputs = nested.feeds(task.example)
        self._alone = alone
        with alone():
            self._probe = LatencyProbe(original, self._layout, self._inputs, threads, original_ms)
        self.original_ms = self._probe.original_ms
        """What a ratio of 1 stands for."""
        proto = onnx.load(str(original))
        self.operators = operators(proto, self._layout, len(graph.sites), self._inputs)
        self._names = names(proto, self.operators)
        self._scratch: Dresser | None = None
        try:
            self._probe.compare(self.model([site.channels - 1 for site in graph.sites]), 1)
        except ExportError:  # the file holds a width elsewhere, as a Reshape does
            self._network = copy.deepcopy(task.model).cpu()
            self._scratch = Dresser(self._network, graph.layers)

    @property
    def best_ms(self) -> float:
        """What the original has taken at its best."""
        return self._probe.best_ms

    def model(self, widths: Sequence[int]) -> bytes:
        """The ONNX model of a policy. Its weights are some of the original's: they do not matter to time."""
        kept = [np.arange(width) for width in widths]
        if self._scratch is None:
            return self._probe.cut(kept)
        self._scratch.dress(kept)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "policy.onnx")
            export_onnx(self._network, self._task.example, path)
            return path.read_bytes()

    def timing(self, widths: Sequence[int]) -> Timing:
        """A policy beside the original, in new sessions of both: sessions differ by some per cent."""
        model = self.model(widths)
        with self._alone():
            return self._probe.afresh(model)

    def ratio(self, widths: Sequence[int], sessions: int = 1) -> float:
        """Time of a policy as a share of the original's: the geometric mean over sessions."""
        return float(np.exp(np.mean([np.log(self.timing(widths).ratio) for _ in range(sessions)])))

    def sample(self, widths: Sequence[int]) -> Sample:
        """Time of a policy, and of all its operators."""
        model = self.model(widths)
        with self._alone():
            timing = self._probe.compare(model)
            times = self._probe.profile(model, self._names)
        return Sample(tuple(widths), timing.ratio, timing.quiet, tuple(times.tolist()))


def profile_key(bench: Bench, threads: int, task: Task) -> dict[str, Any]:
    """What a profile is good for. The network's shapes count, not its weights."""
    lines = [[op.kind, *([x[0].tolist(), x[1]] for x in (op.inputs, op.outputs))] for op in bench.operators]
    network = hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]
    shapes = [list(array.shape) for array in nested.feeds(task.example).values()]
    return {"network": network, "runtime": runtime_version(), "cpu": cpu_name(), "threads": threads,
            "inputs": shapes}  # fmt: skip


def learn_latency(
    bench: Bench,
    graph: Graph,
    key: dict[str, Any],
    path: Path,
    seconds: float,
    progress: Callable[[float, str], None],
) -> LearnedModel:
    """The model that the profile in ``path`` teaches. With ``seconds``, what it lacks is measured first.

    Raises LatencyError where the profile is of another network, runtime, machine or number of threads.
    """
    full = tuple(site.channels for site in graph.sites)
    profile = Profile(key, tuple(s.name for s in graph.sites), full, tuple(bench.operators), bench.original_ms)
    if path.exists():
        known = Profile.load(path)
        other = [name for name in key if known.key.get(name) != key[name]]
        if other:
            raise LatencyError(
                f"the profile {path} is of another {other[0]} ({known.key.get(other[0])}; here it is {key[other[0]]}): "
                "make one with amc profile, in another file."
            )
        profile = known
    settings = [legal_widths(channels, 0.1) for channels in full]
    if seconds:
        profile = collect(profile, settings, bench.sample, seconds, lambda p: p.save(path), progress)
        profile = replace(profile, original_ms=min(profile.original_ms, bench.best_ms))
        profile.save(path)
    bench.original_ms = profile.original_ms
    model = LearnedModel(profile)
    progress(1.0, f"{len(profile.samples)} networks measured, error {100 * model.errors.mean:.1f} %")
    return model


class Paced:
    """Exact costs, and latency in ms as a model predicts it, corrected by a factor."""

    def __init__(self, exact: CostModel, predict: Predict, factor: float) -> None:
        self._exact, self._predict, self._factor = exact, predict, factor

    def costs(self, choices: ArrayLike) -> dict[str, Floats]:
        return {**self._exact.costs(choices), "latency": self._factor * self._predict(choices)}


def steps(predict: Predict, settings: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The settings that are worth something: those where the next wider one costs more time.

    Every site is looked at with the others whole. ONNX Runtime computes channels in blocks, so a width within a block
    costs what the whole block does.
    """
    full = [s[-1] for s in settings]
    found = []
    for site, own in enumerate(settings):
        times = predict([[*full[:site], width, *full[site + 1 :]] for width in own])
        least = np.minimum.accumulate(times[::-1])[::-1]
        nothing = NOTHING * max(0.0, float(times[-1] - least[0]))
        kept: list[int] = [own[-1]]
        cost = times[-1]
        for width, ms in zip(reversed(own[:-1]), times[-2::-1], strict=True):
            if ms < cost - nothing:
                kept.append(width)
                cost = ms
        found.append(tuple(reversed(kept)))
    return tuple(found)


class Meter(Protocol):
    """What measures policies: a `Bench`, or a device of the user's."""

    @property
    def full(self) -> tuple[int, ...]: ...

    @property
    def original_ms(self) -> float: ...

    def ratio(self, widths: Sequence[int], sessions: int = 1) -> float: ...


class Pace:
    """The latency of one run, and its record in the journal."""

    def __init__(
        self, predict: Predict, bench: Meter, asked: str, journal: Journal, said: dict[str, Any], tables: Tables | None
    ) -> None:
        """``asked`` is the user's limit, ``said`` what the report says of the model."""
        self.predict, self.said, self.is_here = predict, said, tables is not None
        self.measures = self.is_here
        """Whether policies can be measured, and the model corrected by that."""
        self._bench, self._journal, self._tables = bench, journal, tables
        self.original_ms = bench.original_ms if self.is_here else float(predict([bench.full])[0])
        self.limit_ms = parse_limit("latency", asked, self.original_ms)

    @classmethod
    def learned(cls, model: LearnedModel, bench: Bench, asked: str, journal: Journal) -> Pace:
        """By a model learned on this machine, so that it can be held against this machine."""
        said = {"networks": len(model.profile.samples), "block": model.block, "error": asdict(model.errors)}
        return cls(model.predict_all, bench, asked, journal, {"model": model.name, **said}, model.tables)

    @classmethod
    def elsewhere(cls, name: str, predict: Predict, bench: Bench, asked: str, journal: Journal) -> Pace:
        """By a model of another device: what it says is believed."""
        return cls(predict, bench, asked, journal, {"model": name}, None)

    def within(self, settings: Sequence[Sequence[int]]) -> Predict:
        """The model for these settings, never less for a wider one where that can be had."""
        return self._tables.non_decreasing(settings) if self._tables else self.predict

    def predicted_proof(self, chosen: Choice) -> dict[str, Any]:
        """The limit held against what a model of another device says."""
        value = float(self.predict([chosen])[0])
        return {"resource": "latency", "unit": "ms", "limit": self.limit_ms, "exported": value,
                "met": value <= self.limit_ms, "how": f"predicted by {self.said['model']}"}  # fmt: skip

    @property
    def factor(self) -> float:
        """By what the model's predictions are corrected."""
        last = self._journal.last("correction")
        return 1.0 if last is None else float(last["factor"])

    def measured(self, choice: Choice) -> float:
        """Milliseconds of a policy, measured once and remembered."""
        for record in self._journal.records("latency"):
            if tuple(record["choice"]) == choice:
                return float(record["ms"])
        ms = self._bench.ratio(choice, SESSIONS) * self._bench.original_ms
        self._journal.append("latency", choice=list(choice), ms=ms, predicted=float(self.predict([choice])[0]))
        return ms

    def aim(self, space: Space, seed: int, progress: Callable[[float, str], None]) -> bool:
        """Measure some policies near the budget and correct the model by them; once in a run."""
        if self._journal.last("correction") is not None:
            return False
        rng = np.random.default_rng(seed)
        shares = [np.ones(len(space.names)), *rng.uniform(0.3, 1.0, (AIMED - 1, len(space.names)))]
        chosen = list(dict.fromkeys(space.fit(share) for share in shares))
        for number, choice in enumerate(chosen):
            self.measured(choice)
            progress((number + 1) / len(chosen), "")
        self._correct(chosen, "near the budget, before the search")
        return True

    def fast_enough(self, choices: Sequence[Choice], progress: Callable[[float, str], None]) -> list[Choice]:
        """Those of the policies that are within the limit when measured; the model is corrected when none is."""
        for number, choice in enumerate(choices):
            self.measured(choice)
            progress((number + 1) / len(choices), "")
        good = [choice for choice in choices if self.measured(choice) <= self.limit_ms * (1 - TIGHT)]
        if not good:
            self._correct(choices, "the best policies")
        return good

    def _correct(self, choices: Sequence[Choice], why: str) -> None:
        measured = np.array([self.measured(choice) for choice in choices])
        self._record(float(np.exp(np.mean(np.log(measured / self.predict(choices))))) * (1 + MARGIN), why)

    def _record(self, factor: float, why: str) -> None:
        done = list(self._journal.records("correction"))
        if len(done) >= CORRECTIONS:
            raise BudgetError(
                f"the latency budget cannot be kept: after {len(done)} corrections of the latency model by what was "
                "measured, networks are still slower than predicted. Raise --latency, or measure on a quieter machine."
            )
        self._journal.append("correction", factor=factor, why=why)

    def keeps(self, upper: float, limit: float) -> bool:
        """Whether the promise is kept; if not, the model is corrected by how much it is missed."""
        if upper <= limit:
            return True
        self._record(self.factor * upper / limit * (1 + MARGIN), "the fine-tuned network")
        return False

    def report(self, chosen: Choice) -> dict[str, Any]:
        """What result.json holds of the model and of its corrections."""
        known = list(self._journal.records("latency"))
        off = [abs(r["predicted"] / r["ms"] - 1) for r in known]
        return {
            **self.said,
            "original_ms": self.original_ms,
            "predicted_ms": float(self.predict([chosen])[0]),
            "corrected_ms": self.factor * float(self.predict([chosen])[0]),
            "measured_policies": len(known),
            "measured_error": float(np.mean(off)) if off else None,
            "corrections": [{"factor": r["factor"], "why": r["why"]} for r in self._journal.records("correction")],
        }


def is_profile(name: str) -> bool:
    """Whether a latency model's name is that of a file of amc profile."""
    try:
        return name.endswith(".json") and json.loads(Path(name).read_text(encoding="utf-8"))["format"] == "amc-profile"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def latency_problem(
    bench: Bench,
    graph: Graph,
    original: Path,
    config: Config,
    journal: Journal,
    task: Task,
    progress: Callable[[float, str], None],
) -> LatencyProblem:
    """What a latency model of the user's is told."""
    sites = [site.name for site in graph.sites]

    def remember(key: str, measure: Callable[[], float]) -> float:
        for record in journal.records("device-latency"):
            if record["key"] == key:
                return float(record["ms"])
        ms = measure()
        journal.append("device-latency", key=key, ms=ms)
        return ms

    search = config.search
    return LatencyProblem(
        full={site.name: site.channels for site in graph.sites},
        settings={s.name: legal_widths(s.channels, search.min_keep, search.channel_step) for s in graph.sites},
        layers=layer_shapes(graph),
        original=original,
        input_shapes={name: tuple(array.shape) for name, array in nested.feeds(task.example).items()},
        threads=config.latency_threads,
        cut=lambda widths: bench.model([widths[site] for site in sites]),
        remember=remember,
        original_ms=bench.original_ms,
        timeout=search.latency_timeout,
        progress=lambda note: progress(0.0, note),
    )


def upper_end(measurement: Measurement) -> float:
    """The final network's share of the original's time: the upper end of the 95 % interval."""
    return measurement.latencies["final"].ratio_high
