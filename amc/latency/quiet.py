"""Timing beside the original, and only while the machine is quiet.

Other programs, and on rented machines other tenants, slow everything down by up to a half for seconds at a time, and
not every network alike: a ratio that was taken meanwhile is off by up to a tenth. So every call is enclosed by calls of
the original, and counts when both were about as fast as the original has ever been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from amc.latency.measure import LOUD, WARMUP, time_call
from amc.latency.session import Inputs, Runner, denormals_as_zero

PATIENCE = 5.0
"""Most seconds to wait for a quiet moment; on the whole, no longer than measuring takes."""
QUIET = 0.5
"""Share of quiet rounds from which a measurement is undisturbed."""
Call = Callable[[], float]
"""One timed inference: its milliseconds."""


@dataclass(frozen=True)
class Timing:
    """What one network took beside the original."""

    ratio: float
    """To the original."""
    quiet: float
    """Share of the rounds that are from a quiet machine: 1, but for a machine that was never quiet."""


class Reference:
    """The original, which tells how fast the machine is just now."""

    def __init__(self, call: Call, best: float = np.inf) -> None:
        """``best``: milliseconds of the fastest call of an earlier session."""
        self._call, self._patience = call, 1e3 * PATIENCE / 5
        with denormals_as_zero():
            self.best = min(best, *(call() for _ in range(WARMUP if best < np.inf else 3 * WARMUP)))

    def __call__(self) -> float:
        ms = self._call()
        self.best = min(self.best, ms)
        return ms

    def is_quiet(self, ms: float) -> bool:
        """Whether a time of the original is near its best."""
        return ms <= LOUD * self.best

    def enclosed(self, work: Callable[[], None], wanted: int) -> Iterator[tuple[float, bool]]:
        """Do ``work`` between two calls of the original, until it was quiet ``wanted`` times or patience is at its end.

        Gives after each what the original then took, and whether that and the one before were quiet.
        """
        done, spent = 0, 0.0
        before = self()
        while done < wanted and self._patience > 0:
            if not self.is_quiet(before):  # waiting is calling: after a sleep the next call would be slow itself
                self._patience -= before
                before = self()
                continue
            work()
            after = self()
            quiet = self.is_quiet(after)
            done += quiet
            spent += after
            yield after, quiet
            before = after
        for _ in range(wanted - done):  # better a disturbed time than none
            work()
            spent += (after := self())
            yield after, False
        self._patience = min(1e3 * PATIENCE, max(0.0, self._patience) + spent)

    def compare(self, call: Call, rounds: int) -> Timing:
        """The ratio of the 10th percentiles over quiet rounds; over all, where fewer than a quarter were quiet."""
        own: list[float] = []
        with denormals_as_zero():
            for _ in range(WARMUP):
                call()
            after = list(self.enclosed(lambda: own.append(call()), rounds))
        times = np.array([(mine, original) for mine, (original, _) in zip(own, after, strict=True)])
        quiet = np.array([q for _, q in after])
        share = min(1.0, float(quiet.sum()) / rounds)
        if share >= 0.25:
            times = times[quiet]
        mine, original = np.percentile(times, 10, axis=0)
        return Timing(float(mine / original), share)


def timed(runner: Runner, inputs: Inputs, calls: int = 1) -> Call:
    """One inference of a session, timed over so many."""
    return lambda: time_call(runner, inputs, calls)
