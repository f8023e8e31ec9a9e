"""Correct: what measured policies say of a latency model's predictions, and when a search begins anew for that.

Notation: ``p`` a prediction in ms, ``m`` what was measured; a corrected prediction is ``f · t · p``. The factor ``f``
is the geometric mean of ``m / p`` over measured policies and a margin; ``t`` ("tighter") is by how much fine-tuned
networks missed the limit.

A run searches in rounds. In a round the correction is fixed; a new one begins another round. There are at most
`ROUNDS` of them.
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
"""Shares of a round's evaluations after which predictions are held against what the best policies take."""
TOLERANCE = 0.02
"""A prediction that is off by more, in logarithms, ends a round."""
MARGIN = 0.015
"""A search aims below the limit by this share, since a measurement of some seconds leaves as much open."""
AGREE = 0.1
"""Policies measured on a noisy machine are believed when they are slower than predicted alike: within this, in
logarithms."""
BOUNDS = (0.5, 2.0)
"""A model that must be corrected by more than that does not know the device."""


class RoundOver(Exception):
    """Ends the search of a round: predictions were corrected, by ``scale`` in all."""

    def __init__(self, scale: float) -> None:
        super().__init__(f"predictions are now corrected by {scale:.3f}")
        self.scale = scale


@dataclass(frozen=True)
class Correction:
    """What predictions are multiplied by, and since when.

    >>> Correction(1.1, 1.02).scale
    1.122
    """

    factor: float = 1.0
    """By policies that were measured."""
    tighter: float = 1.0
    """By how much fine-tuned networks missed the limit."""
    why: str = ""
    after: int | None = None
    """Proposals after which it ended a round; None: between two rounds."""
    evaluated: int = 0
    """Evaluations in the journal by then."""
    observed: int = 0
    """Measured policies in it by then."""

    @property
    def scale(self) -> float:
        """What predictions are multiplied by."""
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
        """Whether the run ends with what this round finds."""
        return self.number + 1 >= ROUNDS

    @property
    def checks(self) -> frozenset[int]:
        """Numbers of proposals after which predictions are checked."""
        return frozenset() if self.is_last else frozenset(math.ceil(share * self.evaluations) for share in CHECKS)


class Corrections:
    """The corrections of a run, kept in its journal."""

    def __init__(self, journal: Journal, evaluations: int) -> None:
        """``evaluations``: that a run may spend on a search."""
        self._journal, self._evaluations = journal, evaluations

    def all(self) -> list[Correction]:
        """In order; the first one is made before the search."""
        return [
            Correction(float(r["factor"]), float(r.get("tighter", 1.0)), str(r["why"]), r.get("after"),
                       int(r.get("evaluated", 0)), int(r.get("observed", 0)))
            for r in self._journal.records("correction")
        ]  # fmt: skip

    @property
    def now(self) -> Correction:
        """The latest one."""
        return next(reversed(self.all()), Correction())

    @property
    def round(self) -> Round:
        """The round that the run is in. What a correction within a round left undone is the next one's."""
        known, left = self.all(), self._evaluations
        for correction in known[1:]:
            left = self._evaluations if correction.after is None else max(1, left - correction.after)
        return Round(max(0, len(known) - 1), left, self.now)

    def add(self, factor: float, why: str, tighter: float = 1.0, after: int | None = None) -> None:
        """Record a correction: another round begins."""
        evaluated, observed = (sum(1 for _ in self._journal.records(kind)) for kind in ("evaluation", "latency"))
        self._journal.append("correction", **asdict(Correction(factor, tighter, why, after, evaluated, observed)))


def estimate(observations: Sequence[Observation], before: float = 1.0 + MARGIN) -> float:
    """The factor that measured policies ask for, margin included.

    What was measured undisturbed counts. Where nothing was, all count if they agree; else the factor stays as it was
    ``before``.

    >>> round(estimate([Observation((8,), 1.1, 1.0, 1.0)]), 4)
    1.1165
    """
    undisturbed = [o for o in observations if o.reliable]
    off = np.log([o.ms / o.predicted for o in undisturbed or observations])
    if not undisturbed and (len(off) < 2 or np.ptp(off) >= AGREE):
        return before
    return (1 + MARGIN) * float(np.exp(off.mean()))


def refuse_wild(factor: float, observations: Sequence[Observation]) -> None:
    """Raise LatencyError when a factor is out of `BOUNDS`: no search is made by such a model."""
    if not BOUNDS[0] <= factor <= BOUNDS[1]:
        worst = max(observations, key=lambda o: abs(math.log(o.ms / o.predicted)))
        raise LatencyError(
            f"latency cannot be predicted: a network takes {worst.ms:.4g} ms where the latency model says "
            f"{worst.predicted:.4g} ms, and it would have to be corrected by {factor:.2f}. Measure when the machine is "
            "idle, with a longer --profile-seconds, or use another --latency-model."
        )
