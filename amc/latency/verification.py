"""Verify: measure policies, each once, and compare the delivered network with the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from amc.latency.measurement import Measurement
from amc.latency.model import LatencyProblem, Predictor
from amc.latency.prediction import LatencyPrediction
from amc.latency.reference import UNDISTURBED, Timing
from amc.operators.channels import widths_of
from amc.runtime.journal import Journal
from amc.space.budget import is_absolute, parse_limit
from amc.space.sites import Choice

SESSIONS = 3
"""Number of sessions in which a policy is measured."""
BUSY = 1.3
"""The machine counts as busy when the original takes more than this many times its usual time."""


class Meter(Protocol):
    """Measures policies: on ONNX Runtime here (`amc.latency.profiling.Bench`), or on a device of the user."""

    @property
    def original_ms(self) -> float:
        """Milliseconds of a ratio of 1."""
        ...

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing:
        """Time of a policy as a ratio to the original's."""
        ...


class DeviceMeter:
    """Measures through a latency model that measures. Ratios are milliseconds: the unit is 1 ms."""

    original_ms = 1.0

    def __init__(self, predictor: Predictor, problem: LatencyProblem) -> None:
        self._predictor, self._sites = predictor, tuple(problem.full)

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing:
        """Milliseconds on the device. The original's latency on this machine plays no role."""
        ms = self._predictor.predict(dict(zip(self._sites, widths, strict=True)))
        return Timing(ms, 1.0, self.original_ms)


@dataclass(frozen=True)
class Observation:
    """A measured policy."""

    choice: Choice
    ms: float
    predicted: float
    """Milliseconds predicted by the model, before any correction."""
    undisturbed: float
    """Share of the rounds in which the machine was undisturbed."""

    @property
    def reliable(self) -> bool:
        """Whether the machine was undisturbed enough for the measurement to be better than a prediction."""
        return self.undisturbed >= UNDISTURBED


class Verifier:
    """Measures every policy at most once in a run; the journal keeps the results."""

    def __init__(self, meter: Meter, prediction: LatencyPrediction, journal: Journal) -> None:
        self._meter, self._prediction, self._journal = meter, prediction, journal

    def observe(self, choice: Choice) -> Observation:
        """Measure a policy, unless the journal has it."""
        known = self.known(choice)
        if known is None:
            timing = self._meter.timing(widths_of(choice), SESSIONS)
            ms = timing.ratio * self._meter.original_ms
            known = Observation(choice, ms, self._prediction.ms(choice), timing.undisturbed)
            self._journal.append(
                "latency", choice=list(choice), ms=ms, predicted=known.predicted, quiet=known.undisturbed
            )
        return known

    def known(self, choice: Choice) -> Observation | None:
        """The measurement of a policy; None if it was not measured."""
        return next((o for o in self.observations() if o.choice == choice), None)

    def observations(self) -> list[Observation]:
        """All measurements, in order."""
        return [
            Observation(tuple(r["choice"]), float(r["ms"]), float(r["predicted"]), float(r["quiet"]))
            for r in self._journal.records("latency")
        ]


@dataclass(frozen=True)
class VerifiedLatency:
    """The latency of the delivered network, compared with the limit.

    >>> VerifiedLatency(1.0, 1.2, "measured").met
    False
    >>> VerifiedLatency(1.0, float("nan"), "measured").met
    False
    """

    limit_ms: float
    ms: float
    how: str
    """How ``ms`` was determined, for reports."""

    @property
    def met(self) -> bool:
        """Whether the latency is within the limit; False if it is not a finite number above 0."""
        return math.isfinite(self.ms) and 0 < self.ms <= self.limit_ms

    def to_json(self) -> dict[str, Any]:
        """The entry among the proofs in result.json."""
        return {"resource": "latency", "unit": "ms", "limit": self.limit_ms, "exported": self.ms, "met": self.met,
                "how": self.how}  # fmt: skip


class Proof(Protocol):
    """Checks that the delivered network keeps the latency limit."""

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """Check ``final``, the exported network of ``chosen``; ``measured`` is its time beside the original."""
        ...

    def disturbed(self, measured: Measurement) -> bool:
        """Whether a measurement is unreliable because the machine was busy."""
        ...


class MeasuredProof:
    """Checks the upper end of the 95 % interval of a measurement beside the original."""

    def __init__(self, asked: str, usual_ms: float) -> None:
        """``asked`` is the limit as the user wrote it, ``usual_ms`` the original's time on the idle machine."""
        self._asked, self._usual_ms = asked, usual_ms

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """See `Proof`."""
        original, last = measured.latencies["original"], measured.latencies["final"]
        limit, ms = parse_limit("latency", self._asked, original.p10_ms), original.p10_ms * last.ratio_high
        if is_absolute(self._asked):
            ms = last.p10_ms * last.ratio_high / last.ratio
        how = "measured beside the original, upper end of the 95 % interval"
        if self.disturbed(measured):
            how += f"; the machine was busy: it took {original.p10_ms:.3g} ms, {self._usual_ms:.3g} ms when undisturbed"
        return VerifiedLatency(limit, ms, how)

    def disturbed(self, measured: Measurement) -> bool:
        """See `Proof`."""
        return measured.latencies["original"].p10_ms > BUSY * self._usual_ms


class DeviceProof:
    """Checks a measurement on the device: of the exported file if the model can measure files, else of the policy."""

    def __init__(self, predictor: Predictor, limit_ms: float, verifier: Verifier) -> None:
        self._predictor, self._limit_ms, self._verifier = predictor, limit_ms, verifier

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """See `Proof`."""
        measure = getattr(self._predictor.model, "measure", None)
        ms = self._verifier.observe(chosen).ms if measure is None else float(measure(final.read_bytes()))
        return VerifiedLatency(self._limit_ms, ms, f"measured by {self._predictor.name}")

    def disturbed(self, measured: Measurement) -> bool:
        """Never: load on this machine does not affect the device."""
        return False


class PredictedProof:
    """Checks the prediction for a device that cannot be measured here."""

    def __init__(self, prediction: LatencyPrediction, limit_ms: float) -> None:
        self._prediction, self._limit_ms = prediction, limit_ms

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """See `Proof`."""
        how = f"predicted by {self._prediction.facts['model']}"
        return VerifiedLatency(self._limit_ms, self._prediction.ms(chosen), how)

    def disturbed(self, measured: Measurement) -> bool:
        """Never: load on this machine does not affect the device."""
        return False
