"""Latency on a device that is measured by the user's own command, in place of what ONNX Runtime takes here.

A measurement takes seconds, so few networks are measured: those that teach a prediction for the search, some near the
budget, the best ones found, and the fine-tuned one, which is held against the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amc.latency import LatencyProblem, Measurement, Predictor
from amc.latency.constraint import Pace, proof
from amc.latency.fitted import fitted
from amc.latency.quiet import Timing
from amc.runtime.journal import Journal
from amc.space.sites import Choice


class Device(Pace):
    """The latency of one run on a device that measures."""

    def __init__(self, predictor: Predictor, problem: LatencyProblem, asked: str, journal: Journal) -> None:
        model = fitted(predictor, problem)
        said = {"model": predictor.name, "networks": model.networks, "left_out_error": model.error}
        self._predictor = predictor
        super().__init__(model.predict_all, _Asked(predictor, problem), asked, journal, said, predictor.original)

    def promise(self, final: Path, chosen: Choice, latency: Measurement) -> dict[str, Any]:
        """The limit held against what the device takes for the final network: the file itself, where it takes files."""
        measure = getattr(self._predictor.model, "measure", None)
        value = self.measured(chosen)["ms"] if measure is None else float(measure(final.read_bytes()))
        return proof(self.limit_ms, value, self.keeps(value, self.limit_ms), f"measured by {self.said['model']}")

    def was_loud(self, latency: Measurement) -> bool:
        """What else this machine does is nothing to the device."""
        return False


class _Asked:
    """Stands where a bench does: measures by asking the model."""

    original_ms = 1.0

    def __init__(self, predictor: Predictor, problem: LatencyProblem) -> None:
        self._predictor, self._sites = predictor, tuple(problem.full)
        self.full = tuple(problem.full.values())

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing:
        """Milliseconds: the original's time here has nothing to do with the device's."""
        return Timing(self._predictor.predict(dict(zip(self._sites, widths, strict=True))), 1.0, self.original_ms)
