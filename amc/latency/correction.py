"""Correct: adjust a latency model to measured policies, and decide when that requires a new round of the search.

Notation: ``p`` is a predicted and ``m`` a measured latency in ms; the corrected prediction is ``f · t · p``. The factor
``f`` is the geometric mean of ``m / p`` over measured policies, times a margin. The factor ``t`` ("tighter") is the
ratio by which fine-tuned networks exceeded the limit.

A run searches in rounds. The correction is constant within a round; a new correction begins another round. There are
at most `ROUNDS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from amc.errors import LatencyError
from amc.latency.verification import Observation
from amc.runtime.journal import Journal

ROUNDS = 4
"""Most rounds of a run."""
CHECKS = (0.25, 0.5)
"""Shares of a round's evaluations after which the best policies are measured and compared with their predictions."""
TOLERANCE = 0.02
"""Largest error of the model, as a logarithm, that does not end a round."""
MARGIN = 0.015
"""Share below the limit that a search aims at: the uncertainty of a measurement of a few seconds."""
AGREE = 0.1
"""Measurements on a noisy machine count when the logarithms of ``m / p`` differ by less than this."""
BOUNDS = (0.5, 2.0)
"""Smallest and largest factor of a correction. A model that needs another one does not fit the device."""


class RoundOver(Exception):
    """Ends a round of the search after a correction; ``scale`` is the new total factor."""

    def __init__(self, scale: float) -> None:
        super().__init__(f"predictions are now corrected by {scale:.3f}")
        self.scale = scale


@dataclass(frozen=True)
class Correction:
    """The factors that predictions are multiplied by, and when they were determined.

    >>> Correction(1.1, 1.02).scale
    1.122
    """

    factor: float = 1.0
    """Measured over predicted latency, margin included."""
    tighter: float = 1.0
    """Ratio by which fine-tuned networks exceeded the limit."""
    why: str = ""
    after: int | None = None
    """Number of proposals in the round that it ended; None for a correction between two rounds."""
    evaluated: int = 0
    """Evaluations in the journal at that time."""
    observed: int = 0
    """Measured policies in the journal at that time."""

    @property
    def scale(self) -> float:
        """The total factor."""
        return self.factor * self.tighter


@dataclass(frozen=True)
class Round:
    """One search under one correction.

    >>> sorted(Round(0, 60, Correction()).checks)
    [15, 30]
    """

    number: int
    """From 0."""
    evaluations: int
    """Policies to evaluate."""
    correction: Correction

    @property
    def is_last(self) -> bool:
        """Whether no other round may follow."""
        return self.number + 1 >= ROUNDS

    @property
    def checks(self) -> frozenset[int]:
        """Numbers of proposals after which the best policies are measured."""
        return frozenset() if self.is_last else frozenset(math.ceil(share * self.evaluations) for share in CHECKS)


class Corrections:
    """The corrections of a run, kept in its journal."""

    def __init__(self, journal: Journal, evaluations: int) -> None:
        """``evaluations``: the budget of one search."""
        self._journal, self._evaluations = journal, evaluations

    def all(self) -> list[Correction]:
        """All corrections in order; the first is made before the search."""
        return [
            Correction(float(r["factor"]), float(r.get("tighter", 1.0)), str(r["why"]), r.get("after"),
                       int(r.get("evaluated", 0)), int(r.get("observed", 0)))
            for r in self._journal.records("correction")
        ]  # fmt: skip

    @property
    def now(self) -> Correction:
        """The latest correction."""
        return next(reversed(self.all()), Correction())

    @property
    def round(self) -> Round:
        """The current round. Evaluations that a round did not use are left to the next one."""
        known, left = self.all(), self._evaluations
        for correction in known[1:]:
            left = self._evaluations if correction.after is None else max(1, left - correction.after)
        return Round(max(0, len(known) - 1), left, self.now)

    def add(self, factor: float, why: str, tighter: float = 1.0, after: int | None = None) -> None:
        """Record a correction, which begins another round."""
        evaluated, observed = (sum(1 for _ in self._journal.records(kind)) for kind in ("evaluation", "latency"))
        self._journal.append("correction", **asdict(Correction(factor, tighter, why, after, evaluated, observed)))


def estimate(observations: Sequence[Observation], before: float = 1.0 + MARGIN) -> float:
    """The factor that fits predictions to the measured policies, margin included.

    Only reliable observations count. Where there are none, all count if they agree; otherwise the factor stays at
    ``before``.

    >>> round(estimate([Observation((8,), 1.1, 1.0, 1.0)]), 4)
    1.1165
    """
    undisturbed = [o for o in observations if o.reliable]
    off = np.log([o.ms / o.predicted for o in undisturbed or observations])
    if not undisturbed and (len(off) < 2 or np.ptp(off) >= AGREE):
        return before
    return (1 + MARGIN) * float(np.exp(off.mean()))


def check_bounds(factor: float, observations: Sequence[Observation]) -> None:
    """Raise LatencyError when a factor is outside `BOUNDS`: the model is useless for a search."""
    if not BOUNDS[0] <= factor <= BOUNDS[1]:
        worst = max(observations, key=lambda o: abs(math.log(o.ms / o.predicted)))
        raise LatencyError(
            f"latency cannot be predicted: a network takes {worst.ms:.4g} ms, the latency model predicts "
            f"{worst.predicted:.4g} ms, and all predictions would need a factor of {factor:.2f}. Measure on an idle "
            "machine, with a longer --profile-seconds, or use another --latency-model."
        )
