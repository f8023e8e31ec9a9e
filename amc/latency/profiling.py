"""Measure policies on ONNX Runtime and learn a latency model, for ``amc profile`` and within a run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from amc.config import Config, unless_auto
from amc.deploy.export import export_onnx, export_pruned, file_layout
from amc.errors import ExportError, LatencyError
from amc.graph.build import build_graph
from amc.graph.sites import Graph
from amc.graph.surgery import ChannelCutter
from amc.latency import LatencyProbe, LatencyProblem, Runner, layer_shapes
from amc.latency.instruments import Instruments, MakeProbe
from amc.latency.learned import Sample, undisturbed
from amc.latency.operators import names, operators
from amc.latency.profile import LEAST, LearnedModel, Profile, collect
from amc.latency.reference import UNDISTURBED, Timing
from amc.operators.channels import legal_widths
from amc.runtime.provenance import cpu_name, runtime_version
from amc.task import Task, nested
from amc.task.checks import copied

_CALLED = {"threads": "number of threads", "inputs": "shape of inputs"}


class Bench:
    """Measures policies on ONNX Runtime: cuts the original's file, or exports again where the cut file does not run."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        original: Path,
        threads: int,
        original_ms: float | None = None,
        exclusive: Callable[[], AbstractContextManager[object]] = nullcontext,
        make_probe: MakeProbe = LatencyProbe,
    ) -> None:
        """``original_ms``: milliseconds of the original, if known. ``exclusive``: a lock against other runs' load."""
        self._task, self._graph, self.full = task, graph, tuple(site.channels for site in graph.sites)
        self._layout = file_layout(original, graph, task.model)
        self._inputs = nested.feeds(task.example)
        self._exclusive = exclusive
        with exclusive():
            self._probe = make_probe(original, self._layout, self._inputs, threads, original_ms)
        proto = onnx.load(str(original))
        self.operators = operators(proto, self._layout, len(graph.sites), self._inputs)
        self._names = names(proto, self.operators)
        self._scratch: ChannelCutter | None = None
        narrow = tuple(max(1, width - 1) for width in self.full)
        removable = {branch.site for branch in self._layout.branches}
        try:
            for widths in {narrow, tuple(0 if s in removable else w for s, w in enumerate(narrow))}:
                Runner(self.model(widths), threads)(self._inputs)
        except ExportError:  # the file has widths outside of weights, as in a Reshape
            self._network = copied(task.model).cpu()
            self._scratch = ChannelCutter(self._network, graph.layers)

    @property
    def original_ms(self) -> float:
        """Milliseconds of a ratio of 1."""
        return self._probe.original_ms

    def set_original_ms(self, original_ms: float) -> None:
        """Set the milliseconds of the original, as measured on an idle machine."""
        self._probe.original_ms = original_ms

    def model(self, widths: Sequence[int]) -> bytes:
        """The ONNX model of a policy, with weights of the original: latency does not depend on their values."""
        kept = [np.arange(width) for width in widths]
        if self._scratch is None:
            return self._probe.cut(kept)
        self._scratch.cut(kept)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "policy.onnx")
            export_pruned(self._network, self._task.example, path, self._graph, kept)
            return path.read_bytes()

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing:
        """Time a policy beside the original, in new sessions of both, since sessions differ by a few per cent.

        The ratio is the geometric mean over the undisturbed sessions, or over all if none was undisturbed.
        """
        model = self.model(widths)
        with self._exclusive():
            found = [self._probe.compare_with_new_session(model) for _ in range(sessions)]
        good = [t for t in found if t.undisturbed >= UNDISTURBED] or found
        ratio, original_ms = np.exp(np.mean([np.log([t.ratio, t.original_ms]) for t in good], 0)).tolist()
        return Timing(ratio, float(np.mean([t.undisturbed for t in good])), original_ms)

    def sample(self, widths: Sequence[int]) -> Sample:
        """Time a policy and all its operators."""
        model = self.model(widths)
        with self._exclusive():
            timing = self._probe.compare_with_new_session(
                model
            )  # with one session for all, its error would be in all samples
            times = self._probe.profile(model, self._names)
        return Sample(tuple(widths), timing.ratio, timing.undisturbed, timing.original_ms, tuple(times.tolist()))


def profile_key(bench: Bench, threads: int, task: Task) -> dict[str, Any]:
    """What a profile is valid for. It depends on the network's shapes, not on its weights."""
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
    """Learn a model from the profile in ``path``, after measuring for up to ``seconds`` if the profile is incomplete.

    Raises LatencyError if the profile is for another network, runtime, CPU, number of threads or shape of inputs.
    """
    full = tuple(site.channels for site in graph.sites)
    profile = Profile(key, tuple(s.name for s in graph.sites), full, tuple(bench.operators), bench.original_ms)
    if path.exists():
        known = Profile.load(path)
        other = [name for name in key if known.key.get(name) != key[name]]
        if other:
            what, theirs = _CALLED.get(other[0], other[0]), known.key.get(other[0])
            raise LatencyError(
                f"the profile {path} is for another {what} ({theirs}; here it is {key[other[0]]}): make a new one with "
                "amc profile, in another file."
            )
        profile = replace(known, operators=tuple(bench.operators))  # older profiles do not record removable branches
        bench.set_original_ms(profile.original_ms)
    settings = [legal_widths(channels, 0.1) for channels in full]
    if seconds:
        profile = collect(profile, settings, bench.sample, seconds, lambda p: p.save(path), progress)
        usual = [sample.original_ms for sample in undisturbed(profile.samples)]
        profile = replace(profile, original_ms=median(usual or [profile.original_ms]))
        profile.save(path)
    if len(profile.samples) < LEAST:
        raise LatencyError(
            f"the profile {path} holds {len(profile.samples)} networks, but at least {LEAST} are needed: "
            f"continue it with amc profile --out {path}."
        )
    bench.set_original_ms(profile.original_ms)
    model = LearnedModel(profile)
    progress(1.0, f"{len(profile.samples)} networks measured, error {100 * model.errors.mean:.1f} %")
    return model


def profile_network(
    task: Task,
    config: Config,
    path: Path,
    progress: Callable[[float, str], None],
    instruments: Instruments | None = None,
) -> LearnedModel:
    """Measure policies of the task's network into the profile ``path``, which is continued if it exists."""
    probe = (instruments or Instruments.usual()).probe
    graph = build_graph(task.model, task.example)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, "original.onnx")
        export_onnx(task.model, task.example, original)
        bench = Bench(task, graph, original, config.latency_threads, make_probe=probe)
        key = profile_key(bench, config.latency_threads, task)
        return learn_latency(bench, graph, key, path, config.profile_seconds, progress)


def latency_problem(
    bench: Bench,
    graph: Graph,
    original: Path,
    config: Config,
    remember: Callable[[str, Callable[[], float]], float],
    task: Task,
    progress: Callable[[float, str], None],
) -> LatencyProblem:
    """The description of network and search for a user's latency model."""
    sites, search = [site.name for site in graph.sites], config.search
    return LatencyProblem(
        full={site.name: site.channels for site in graph.sites},
        settings={
            s.name: legal_widths(s.channels, search.least_share, unless_auto(search.channel_step)) for s in graph.sites
        },
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
