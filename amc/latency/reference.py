"""Time a network beside the original, and only while nothing else disturbs the machine.

Other programs, and other tenants of a shared machine, slow everything down by up to 50 % for seconds at a time. They do
not affect all networks equally, so a ratio measured meanwhile may be wrong by 10 %. Therefore every call is enclosed by
two calls of the original, and counts only if both took about the usual time of the original. The usual time is the 10th
percentile rather than the minimum, because one unusually fast moment must not make the rest of the day look disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from amc.latency.measurement import USUAL, WARMUP, is_usual, time_call
from amc.latency.session import Inputs, Runner, denormals_as_zero

PATIENCE = 5.0
"""Most seconds to wait for an undisturbed moment; in total, waiting takes no longer than measuring."""
UNDISTURBED = 0.5
"""Least share of undisturbed rounds in a measurement that counts as undisturbed."""
MEMORY = 60e3
"""Time constant in milliseconds of the exponential weights of past calls: the usual time follows a lasting slowdown."""
_BINS = np.geomspace(1e-3, 1e5, 1850)  # 1 % apart; kept few, since they occupy CPU caches between calls
Call = Callable[[], float]
"""One timed inference: its milliseconds."""


@dataclass(frozen=True)
class Timing:
    """Time of one network, measured beside the original."""

    ratio: float
    """Time as a share of the original's."""
    undisturbed: float
    """Number of undisturbed rounds as a share of the wanted ones, at most 1."""
    original_ms: float
    """Milliseconds of the original, measured at the same time."""


class UsualTime:
    """UsualTime time of the original: the 10th percentile of its past times, with exponentially decaying weights.

    >>> usual = UsualTime()
    >>> for ms in (2.0, 2.0, 9.0):
    ...     usual.add(ms)
    >>> round(usual.ms, 1)
    2.0
    """

    def __init__(self) -> None:
        self._spent = np.zeros(len(_BINS))

    def add(self, ms: float) -> None:
        """Add a call."""
        self._spent *= np.exp(-ms / MEMORY)
        self._spent[min(int(np.searchsorted(_BINS, ms)), len(_BINS) - 1)] += ms

    @property
    def ms(self) -> float:
        """Milliseconds, with a resolution of 1 %."""
        passed = np.cumsum(self._spent)
        return float(_BINS[np.searchsorted(passed, USUAL * passed[-1])])


class Reference:
    """The original network, which shows how fast the machine currently is."""

    def __init__(self, call: Call, known: UsualTime | None = None) -> None:
        """``known``: times of earlier sessions; this session's calls are added to them."""
        self._call, self._patience = call, 1e3 * PATIENCE / 5
        self.usual = known or UsualTime()
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
        """Whether ``ms`` is the usual time of the original."""
        return bool(is_usual(ms, self.usual.ms))

    def interleaved(self, work: Callable[[], None], wanted: int) -> Iterator[tuple[float, bool]]:
        """Repeat ``work`` between calls of the original, until ``wanted`` repetitions were undisturbed or time is up.

        Yields for each the mean milliseconds of the two enclosing calls, and whether both took the usual time.
        """
        done, spent = 0, 0.0
        before = self()
        while done < wanted and self._patience > 0:
            if not self.is_undisturbed(before):  # wait by calling: after a sleep, the next call would be slow
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
        for _ in range(wanted - done):  # time is up: accept disturbed repetitions
            work()
            spent += (after := self())
            yield (before + after) / 2, False
            before = after
        self._patience = min(1e3 * PATIENCE, max(0.0, self._patience) + spent)

    def compare(self, call: Call, rounds: int) -> Timing:
        """Time ``call``: the median ratio to the enclosing calls over the undisturbed rounds, or over all if too few.

        With the few rounds of one session, the median is more repeatable than a ratio of percentiles.
        """
        own: list[float] = []
        with denormals_as_zero():
            for _ in range(WARMUP):
                call()
            around = list(self.interleaved(lambda: own.append(call()), rounds))
        mine, (original, usual) = np.array(own), (np.array(x) for x in zip(*around, strict=True))
        share = min(1.0, float(usual.sum()) / rounds)
        counted = usual if share >= 0.25 else np.ones(len(usual), bool)
        return Timing(float(np.median((mine / original)[counted])), share, float(np.median(original[counted])))


def timed(runner: Runner, inputs: Inputs, calls: int = 1) -> Call:
    """A timed inference: the mean over ``calls`` calls of a session."""
    return lambda: time_call(runner, inputs, calls)
