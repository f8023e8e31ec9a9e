"""The loop of a batch: which run begins when, and what is done when one ends. Who does the runs is not its business."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from amc.batch.matrix import Job
from amc.errors import AmcError, first_line, is_out_of_memory

TICK = 0.25  # seconds


@dataclass(frozen=True)
class Failure:
    """Why a run did not end well, and whether trying again may help."""

    reason: str
    again: bool


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at a run."""

    job: Job
    attempt: int
    failure: Failure | None
    last: bool
    """Whether there will be no other attempt."""


@dataclass(frozen=True)
class Limits:
    """What the runs may use: how many at a time, threads of each, bytes of memory of each (0: no limit), retries."""

    workers: int = 1
    threads: int = 0
    memory: int = 0
    retries: int = 1


class Observer:
    """Told of what happens; does nothing with it."""

    def started(self, job: Job, attempt: int) -> None:
        """An attempt, counted from 1, begins."""

    def ended(self, outcome: Outcome) -> None:
        """An attempt is over."""

    def tick(self) -> None:
        """Some time has passed."""


class Workforce(Protocol):
    """What does the runs: processes of this machine, or a cluster."""

    def room(self) -> int:
        """How many runs it takes at a time."""

    def begin(self, job: Job, attempt: int) -> Hashable:
        """Begin a run; gives a handle of it."""

    def ended(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        """The runs that have ended since the last time, after waiting for one for at most so long."""

    def stop(self) -> None:
        """Stop what is still running; each can be gone on with."""


def drive(jobs: Sequence[Job], retries: int, force: Workforce, observer: Observer) -> None:
    """Run every job, and those that crash again. On Ctrl-C all are stopped."""
    waiting = deque((job, 1) for job in jobs)
    running: dict[Hashable, tuple[Job, int]] = {}
    try:
        while waiting or running:
            room = force.room()
            while waiting and len(running) < room:
                job, attempt = waiting.popleft()
                running[force.begin(job, attempt)] = (job, attempt)
                observer.started(job, attempt)
            for handle, failure in force.ended(TICK):
                job, attempt = running.pop(handle)
                again = failure is not None and failure.again and attempt <= retries
                if again:
                    waiting.append((job, attempt + 1))
                observer.ended(Outcome(job, attempt, failure, not again))
            observer.tick()
    finally:
        force.stop()


def described(error: Exception) -> Failure:
    """What a run threw, as a failure: a user's mistake stays one, however often it is tried."""
    if is_out_of_memory(error):
        return Failure(f"out of memory: {first_line(error)}", False)
    if isinstance(error, AmcError):
        return Failure(str(error), False)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"{error.strerror or error}{where}", True)
    return Failure(f"{type(error).__name__}: {first_line(error)}", True)
