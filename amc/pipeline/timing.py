"""Latency in a run: measuring policies, and predicting, verifying and correcting their latency."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from amc.errors import ConfigError
from amc.evaluation.scorer import compares_logits
from amc.graph.sites import Graph
from amc.latency import Predictor, is_profile, load_latency_model
from amc.latency.constraint import LatencyConstraint, constraint_by_model, constraint_here, constraint_on_device
from amc.latency.prediction import LatencyPrediction
from amc.latency.profiling import Bench, latency_problem, learn_latency, profile_key
from amc.pipeline.original import original_onnx
from amc.pipeline.record import Record
from amc.runtime.cache import Table
from amc.runtime.files import replacing

AWARE_SECONDS = 20.0
"""Seconds of profiling for a latency-aware search without a limit."""


class RunTiming:
    """Measures and limits the latency of one run's network."""

    def __init__(self, record: Record, graph: Graph) -> None:
        self.record, self._graph = record, graph

    def bench(self) -> Bench:
        """The bench that measures policies on ONNX Runtime. The original is measured once in a run."""
        record = self.record
        known = record.journal.last("latency-scale")
        ms = None if known is None else float(known["ms"])
        threads, measuring = record.config.latency_threads, record.lock.exclusive
        probe = record.instruments.probe
        bench = Bench(record.task, self._graph, original_onnx(record), threads, ms, measuring, probe)
        if known is None:
            record.journal.append("latency-scale", ms=bench.original_ms)
        return bench

    def constraint(self) -> LatencyConstraint | None:
        """Predicts, verifies and corrects latency; None without a limit on it."""
        record = self.record
        asked, journal, evaluations = record.config.budget.latency, record.journal, record.config.search.evaluations
        if asked is None:
            return None
        bench, named = self.bench(), record.config.search.latency_model
        progress = record.step
        if named is None or is_profile(named):
            key = profile_key(bench, record.config.latency_threads, record.task)
            path = self._profile(bench, key, record.config.profile_seconds) if named is None else Path(named)
            return constraint_here(
                learn_latency(bench, self._graph, key, path, 0, progress), bench, asked, journal, evaluations
            )
        remember = DeviceTimes(record)
        problem = latency_problem(
            bench, self._graph, original_onnx(record), record.config, remember, record.task, progress
        )
        predictor = Predictor(load_latency_model(named), problem)
        if predictor.measures:
            return constraint_on_device(predictor, problem, asked, journal, evaluations)
        return constraint_by_model(predictor, asked, journal, evaluations)

    def prediction(self) -> LatencyPrediction | None:
        """Predictions for a latency-aware search without a limit; None if the search is not latency-aware."""
        record, search = self.record, self.record.config.search
        if not search.latency_aware:
            return None
        if not compares_logits(record.task, search.objective):
            raise ConfigError(
                "--latency-aware needs a network with one vector of logits per sample, and --search-objective "
                "logit_mse. Leave it out, or limit --latency."
            )
        bench, named = self.bench(), search.latency_model
        key = profile_key(bench, record.config.latency_threads, record.task)
        seconds = min(AWARE_SECONDS, record.config.profile_seconds)
        path = self._profile(bench, key, seconds) if named is None else Path(named)
        model = learn_latency(bench, self._graph, key, path, 0, record.step)
        return LatencyPrediction.learned(model, bench.original_ms)

    def _profile(self, bench: Bench, key: dict[str, Any], seconds: float) -> Path:
        """The path of the run's profile. Runs that share a cache share the profile, but not their corrections."""
        record = self.record
        path = record.folder / "profile.json"
        if record.journal.last("profile") is None or not path.exists():
            content = record.memo.profile({**key, "seconds": seconds}, partial(self._learn, bench, key, path, seconds))
            if not path.exists() or path.read_bytes() != content:
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
                record.monitor.say("latency is predicted with the profile of an earlier run")
            record.journal.append("profile")
        return path

    def _learn(self, bench: Bench, key: dict[str, Any], path: Path, seconds: float) -> bytes:
        """Make the profile, write it to ``path`` and return its content."""
        learn_latency(bench, self._graph, key, path, seconds, self.record.step)
        return path.read_bytes()


class DeviceTimes:
    """Latencies of networks on a device, each measured once. Runs share them while the device is unchanged."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._shared: Table | None = None

    def __call__(self, key: str, measure: Callable[[], float]) -> float:
        """Milliseconds of the network ``key``; ``measure`` is called if they are unknown."""
        record = self._record
        known = {r["key"]: float(r["ms"]) for r in record.journal.records("device-latency")}
        if key in known:
            return known[key]
        ms = None
        if not known:  # every run measures one network itself, to see whether the device has changed
            ms = known[key] = self._alone(measure)
        if self._shared is None:
            self._shared = record.memo.device_times(*next(iter(known.items())))
        found = float(self._shared.once(key, partial(self._alone, measure))) if ms is None else ms
        record.journal.append("device-latency", key=key, ms=found)
        return found

    def _alone(self, measure: Callable[[], float]) -> float:
        with self._record.lock.exclusive():
            return measure()
