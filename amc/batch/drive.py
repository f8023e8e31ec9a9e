"""The scheduling loop of a batch: when a run starts, and what happens when it ends. A `Workforce` executes the runs."""

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
    """Why a run failed, and whether another attempt may help."""

    reason: str
    again: bool


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at a run."""

    job: Job
    attempt: int
    failure: Failure | None
    last: bool
    """Whether there will be no further attempt."""


@dataclass(frozen=True)
class Limits:
    """Limits of the runs: how many at a time, threads per run, bytes of memory per run (0: no limit), retries."""

    workers: int = 1
    threads: int = 0
    memory: int = 0
    retries: int = 1


class Observer:
    """Receives the events of a batch. This base class ignores them."""

    def started(self, job: Job, attempt: int) -> None:
        """An attempt, counted from 1, starts."""

    def ended(self, outcome: Outcome) -> None:
        """An attempt has ended."""

    def tick(self) -> None:
        """Some time has passed."""


class Workforce(Protocol):
    """Executes runs: processes on this machine, or a cluster."""

    def room(self) -> int:
        """The number of runs that it takes at a time."""

    def begin(self, job: Job, attempt: int) -> Hashable:
        """Start a run and return its handle."""

    def ended(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        """The runs that ended since the last call. Waits at most ``seconds`` for one."""

    def stop(self) -> None:
        """Stop all running runs. Each can be resumed."""


def drive(jobs: Sequence[Job], retries: int, force: Workforce, observer: Observer) -> None:
    """Run every job, and repeat those that crash. Ctrl-C stops all."""
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
    """The failure for an exception in a run. Errors of the user are not tried again.

    >>> described(ValueError("bad value"))
    Failure(reason='ValueError: bad value', again=True)
    """
    if is_out_of_memory(error):
        return Failure(f"out of memory: {first_line(error)}", False)
    if isinstance(error, AmcError):
        return Failure(str(error), False)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"{error.strerror or error}{where}", True)
    return Failure(f"{type(error).__name__}: {first_line(error)}", True)
