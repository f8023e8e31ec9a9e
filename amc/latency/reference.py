"""Timing beside the original, and only while nothing else disturbs the machine.

Other programs, and on rented machines other tenants, slow everything down by up to a half for seconds at a time, and
not every network alike: a ratio that was taken meanwhile is off by up to a tenth. So every call is enclosed by calls of
the original, and counts when both were about as fast as the original usually is. Usual is the 10th percentile and not
the best ever: a machine that was fast for one moment of the day is not disturbed for the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from amc.latency.measurement import USUAL, WARMUP, is_usual, time_call
from amc.latency.session import Inputs, Runner, denormals_as_zero

PATIENCE = 5.0
"""Most seconds to wait for an undisturbed moment; on the whole, no longer than measuring takes."""
UNDISTURBED = 0.5
"""Share of undisturbed rounds from which a measurement counts as undisturbed."""
MEMORY = 60e3
"""Milliseconds after which a call counts a third: a machine that stays slower is at last taken as it is."""
_BINS = np.geomspace(1e-3, 1e5, 1850)  # a per cent apart; few, since they pass through the caches between calls
Call = Callable[[], float]
"""One timed inference: its milliseconds."""


@dataclass(frozen=True)
class Timing:
    """What one network took beside the original."""

    ratio: float
    """To the original."""
    undisturbed: float
    """Share of the rounds in which nothing disturbed the machine; 1 where enough of them were found."""
    original_ms: float
    """What the original took meanwhile."""


class Usual:
    """What the original usually takes: the 10th percentile of the time it ran, the last minutes counting most."""

    def __init__(self) -> None:
        self._spent = np.zeros(len(_BINS))

    def add(self, ms: float) -> None:
        """One more call."""
        self._spent *= np.exp(-ms / MEMORY)
        self._spent[min(int(np.searchsorted(_BINS, ms)), len(_BINS) - 1)] += ms

    @property
    def ms(self) -> float:
        """Milliseconds, to a per cent."""
        passed = np.cumsum(self._spent)
        return float(_BINS[np.searchsorted(passed, USUAL * passed[-1])])


class Reference:
    """The original, which tells how fast the machine is just now."""

    def __init__(self, call: Call, known: Usual | None = None) -> None:
        """``known``: what its earlier sessions took; this one's calls are added."""
        self._call, self._patience = call, 1e3 * PATIENCE / 5
        self.usual = known or Usual()
        with denormals_as_zero():
            for number in range(WARMUP if known else 4 * WARMUP):
                if number < WARMUP:  # the first calls of a session are slow
                    call()
                else:
                    self()

    def __call__(self) -> float:
        ms = self._call()
        self.usual.add(ms)
        return ms

    def is_undisturbed(self, ms: float) -> bool:
        """Whether a time of the original is the usual one."""
        return bool(is_usual(ms, self.usual.ms))

    def enclosed(self, work: Callable[[], None], wanted: int) -> Iterator[tuple[float, bool]]:
        """Do ``work`` between two calls of the original, until nothing disturbed it ``wanted`` times or patience ends.

        Gives after each what the two took on average, and whether both took their usual time.
        """
        done, spent = 0, 0.0
        before = self()
        while done < wanted and self._patience > 0:
            if not self.is_undisturbed(before):  # waiting is calling: after a sleep the next call would be slow itself
                self._patience -= before
                before = self()
                continue
            work()
            after = self()
            usual = self.is_undisturbed(after)
            done += usual
            spent += after
            yield (before + after) / 2, usual
            before = after
        for _ in range(wanted - done):  # better a disturbed time than none
            work()
            spent += (after := self())
            yield (before + after) / 2, False
            before = after
        self._patience = min(1e3 * PATIENCE, max(0.0, self._patience) + spent)

    def compare(self, call: Call, rounds: int) -> Timing:
        """The median of the ratios to the enclosing calls over undisturbed rounds; over all where those are too few.

        With the few rounds of one session it repeats better than a ratio of percentiles.
        """
        own: list[float] = []
        with denormals_as_zero():
            for _ in range(WARMUP):
                call()
            around = list(self.enclosed(lambda: own.append(call()), rounds))
        mine, (original, usual) = np.array(own), (np.array(x) for x in zip(*around, strict=True))
        share = min(1.0, float(usual.sum()) / rounds)
        counted = usual if share >= 0.25 else np.ones(len(usual), bool)
        return Timing(float(np.median((mine / original)[counted])), share, float(np.median(original[counted])))


def timed(runner: Runner, inputs: Inputs, calls: int = 1) -> Call:
    """One inference of a session, timed over so many."""
    return lambda: time_call(runner, inputs, calls)
