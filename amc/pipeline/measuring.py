"""Measure a run's networks: model.onnx beside the original, and model.int8.onnx if it is wanted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from amc.errors import ExportError
from amc.latency import Measurement, onnx_metric
from amc.latency.constraint import LatencyConstraint
from amc.latency.int8 import fastest
from amc.pipeline.record import Record
from amc.pipeline.trust import file_code, is_own_file
from amc.runtime.files import replacing
from amc.task import batches, nested
from amc.task.splits import sample

INT8, INT8_SAMPLES = "model.int8.onnx", 256
VERIFY_SECONDS = 20.0
"""Longest time for measuring under a limit on latency; it ends earlier once the ratio is precise enough."""
VERIFY_TRIES = 3
"""Number of attempts on a noisy machine."""


class Measuring:
    """Measures the files that a run has exported."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def measure(self, latency: LatencyConstraint | None = None) -> Measurement:
        """Time both networks side by side on one sample. With a limit, repeat this on a noisy machine."""
        record = self.record
        models = {"original": record.folder / "original.onnx", "final": record.folder / "model.onnx"}
        inputs = nested.feeds(record.task.example)
        threads, progress = record.config.latency_threads, record.step
        seconds = record.instruments.limited(5.0 if latency is None else VERIFY_SECONDS)
        for _ in range(VERIFY_TRIES):
            with record.lock.exclusive():
                found = record.instruments.measure(
                    models, inputs, threads, seconds, seed=record.config.seed, progress=progress
                )
            if latency is None or not latency.proof.disturbed(found):
                break
        return found

    def quantise(self) -> dict[str, Any] | None:
        """Write model.int8.onnx and time it. If it cannot be made, the result has the reason and the run continues."""
        record = self.record
        source, target = record.folder / "model.onnx", record.folder / INT8
        if not record.config.int8:
            return None
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:32]
        known = record.journal.last("int8")
        if known is None or known["of"] != digest or not (known["found"].get("error") or _is_own(target, known)):
            try:
                with replacing(target) as temporary:
                    found = self._quantised(source, temporary)
            except ExportError as error:
                target.unlink(missing_ok=True)
                found = {"error": str(error)}
                record.monitor.say(f"no {INT8}: {error}")
            code = file_code(_sha256(target)) if target.exists() else None
            record.journal.append("int8", of=digest, found=found, code=code)
            return found
        return dict(known["found"])

    def _quantised(self, source: Path, target: Path) -> dict[str, Any]:
        """Write the 8-bit model to ``target``; returns its entry in result.json."""
        record = self.record
        search, inputs = record.task.splits.search, nested.feeds(record.task.example)
        calibration = sample(record.task.splits.calibration, INT8_SAMPLES, record.config.seed)
        best, tried = fastest(
            source,
            target,
            [nested.feeds(images) for images, _ in batches(calibration, 16)],
            lambda path: onnx_metric(path, record.task.objective, search),
            inputs,
            record.config.latency_threads,
            record.step,
            record.lock.exclusive,
            record.instruments,
        )
        models = {"original": record.folder / "original.onnx", "final": source, "int8": target}
        with record.lock.exclusive():
            times = record.instruments.measure(
                models, inputs, record.config.latency_threads, record.instruments.limited(5.0),
                seed=record.config.seed, progress=lambda share, note: record.step(0.5 + share / 2, note),
            )  # fmt: skip
        ratios = {
            key: dict(zip(("value", "low", "high"), times.ratio("int8", other), strict=True))
            for key, other in (("ratio", "original"), ("ratio_to_final", "final"))
        }
        return {
            "setting": best.name, "search": best.metric, "size": target.stat().st_size,
            "in_float": list(best.in_float), "layers": best.layers, "latency_ms": times.latencies["int8"].p10_ms,
            "original_ms": times.latencies["original"].p10_ms, "final_ms": times.latencies["final"].p10_ms, **ratios,
            "tried": [{"setting": t.name, "search": t.metric, "ratio": t.ratio, "in_float": len(t.in_float)}
                      for t in tried],
        }  # fmt: skip


def _is_own(path: Path, known: dict[str, Any]) -> bool:
    """Whether a file is the one that this user made, by its record in the journal."""
    return path.exists() and is_own_file(_sha256(path), known.get("code"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
