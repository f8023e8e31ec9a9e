"""Verify: measure policies, each once, and hold the limit against the network that is delivered."""

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
"""Sessions in which a policy is measured."""
BUSY = 1.3
"""A machine on which the original takes so many times its usual time is busy with something else."""


class Meter(Protocol):
    """What measures policies: ONNX Runtime here (`amc.latency.profiling.Bench`), or a device of the user's."""

    @property
    def original_ms(self) -> float:
        """Milliseconds that a ratio of 1 stands for."""
        ...

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing:
        """The time of a policy, as a ratio to the original's."""
        ...


class DeviceMeter:
    """Measures by asking a model that measures. Its ratios are milliseconds."""

    original_ms = 1.0

    def __init__(self, predictor: Predictor, problem: LatencyProblem) -> None:
        self._predictor, self._sites = predictor, tuple(problem.full)

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing:
        """Milliseconds: what the original takes on this machine has nothing to do with the device."""
        ms = self._predictor.predict(dict(zip(self._sites, widths, strict=True)))
        return Timing(ms, 1.0, self.original_ms)


@dataclass(frozen=True)
class Observation:
    """A policy that was measured."""

    choice: Choice
    ms: float
    predicted: float
    """Milliseconds by the model, before any correction."""
    undisturbed: float
    """Share of the rounds in which the machine was undisturbed."""

    @property
    def reliable(self) -> bool:
        """Whether the measurement tells more than the model does."""
        return self.undisturbed >= UNDISTURBED


class Verifier:
    """Measures policies, each once in a run: the journal keeps what was measured."""

    def __init__(self, meter: Meter, prediction: LatencyPrediction, journal: Journal) -> None:
        self._meter, self._prediction, self._journal = meter, prediction, journal

    def observe(self, choice: Choice) -> Observation:
        """Measure a policy, or recall what it took."""
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
        """What a policy took, if it was measured."""
        return next((o for o in self.observations() if o.choice == choice), None)

    def observations(self) -> list[Observation]:
        """All that was measured, in order."""
        return [
            Observation(tuple(r["choice"]), float(r["ms"]), float(r["predicted"]), float(r["quiet"]))
            for r in self._journal.records("latency")
        ]


@dataclass(frozen=True)
class VerifiedLatency:
    """The limit beside what the delivered network takes.

    >>> VerifiedLatency(1.0, 1.2, "measured").met
    False
    >>> VerifiedLatency(1.0, float("nan"), "measured").met
    False
    """

    limit_ms: float
    ms: float
    how: str
    """How ``ms`` was found out."""

    @property
    def met(self) -> bool:
        """Whether the limit is kept. What is no number does not keep it."""
        return math.isfinite(self.ms) and 0 < self.ms <= self.limit_ms

    def to_json(self) -> dict[str, Any]:
        """As `result.json` holds it among its proofs."""
        return {"resource": "latency", "unit": "ms", "limit": self.limit_ms, "exported": self.ms, "met": self.met,
                "how": self.how}  # fmt: skip


class Proof(Protocol):
    """Holds a limit on latency against the network that is delivered."""

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """``final`` is the exported network of the policy ``chosen``, ``measured`` its time beside the original."""
        ...

    def disturbed(self, measured: Measurement) -> bool:
        """Whether a measurement says little, since the machine was busy with something else."""
        ...


class BesideOriginal:
    """By the measurement beside the original: the upper end of the 95 % interval."""

    def __init__(self, asked: str, usual_ms: float) -> None:
        """``asked`` is the limit as the user gave it, ``usual_ms`` what the original takes on the idle machine."""
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


class OnDevice:
    """By the device that measures: of the file itself, where it takes files."""

    def __init__(self, predictor: Predictor, limit_ms: float, verifier: Verifier) -> None:
        self._predictor, self._limit_ms, self._verifier = predictor, limit_ms, verifier

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """See `Proof`."""
        measure = getattr(self._predictor.model, "measure", None)
        ms = self._verifier.observe(chosen).ms if measure is None else float(measure(final.read_bytes()))
        return VerifiedLatency(self._limit_ms, ms, f"measured by {self._predictor.name}")

    def disturbed(self, measured: Measurement) -> bool:
        """What else this machine does is nothing to the device."""
        return False


class ByPrediction:
    """By what a model of another device says."""

    def __init__(self, prediction: LatencyPrediction, limit_ms: float) -> None:
        self._prediction, self._limit_ms = prediction, limit_ms

    def verify(self, final: Path, chosen: Choice, measured: Measurement) -> VerifiedLatency:
        """See `Proof`."""
        how = f"predicted by {self._prediction.facts['model']}"
        return VerifiedLatency(self._limit_ms, self._prediction.ms(chosen), how)

    def disturbed(self, measured: Measurement) -> bool:
        """What else this machine does is nothing to the device."""
        return False
