"""The flow of a batch: read → find the state of every run → check → run → table and page."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc.batch.drive import Failure, Limits, Observer, Outcome, Workforce, drive
from amc.batch.matrix import Job, Matrix
from amc.batch.plan import Planned, plan
from amc.batch.pool import Processes, run_in_process
from amc.config import from_dict, to_dict
from amc.errors import ConfigError
from amc.runtime.journal import Journal

MANY = 200
"""A matrix of more runs than this needs ``--yes``."""


@dataclass(frozen=True)
class Ended:
    """The end of a batch: the number of runs that are done, and the reasons of those that failed."""

    folder: Path
    done: int
    failed: dict[str, str]


def refuse_many(matrix: Matrix, yes: bool) -> None:
    """Raise ConfigError without ``yes`` for a matrix so large that it may be a mistake."""
    if matrix.size > MANY and not yes:
        shape = " × ".join(f"{len(entries):,} {axis}" for axis, entries in matrix.axes.items())
        raise ConfigError(f"this is a matrix of {matrix.size:,} runs ({shape}): add --yes if that is intended.")


def examine(planned: Sequence[Planned]) -> None:
    """Raise ConfigError for runs that cannot work, such as an unknown network or a budget that cannot be reached."""
    jobs = [p.job for p in planned if p.state == "new"]
    if not jobs:
        return
    found = run_in_process(_examine, ([to_dict(job.config) for job in jobs],))
    if isinstance(found, Failure):
        raise ConfigError(f"the runs could not be checked: {found.reason}.")
    wrong = [f"run {job.name}: {message}" for job, message in zip(jobs, found, strict=True) if message]
    if wrong:
        others = f" (and {len(wrong) - 1} more of the {len(jobs)} runs cannot work)" if len(wrong) > 1 else ""
        raise ConfigError(f"{wrong[0]}{others}")


def _examine(values: Sequence[dict[str, object]]) -> list[str | None]:
    from amc.batch.worker import examine as look

    return list(look(map(from_dict, values)))


def run_batch(jobs: Sequence[Job], folder: Path, limits: Limits, screen: Observer, ray: str | None = None) -> Ended:
    """Execute every run that is not done yet, and write the report. Call it again to continue.

    ``ray`` is the address of a Ray cluster. None uses processes on this machine.
    """
    from amc.reports.batch_page import write_batch_report

    with _workforce(jobs, limits, folder / "logs", ray) as force:
        planned = plan(jobs)
        examine(planned)
        with Journal(folder / "batch.jsonl") as journal:
            runs = [{"name": job.name, "place": dict(job.place)} for job in jobs]
            journal.append("batch", runs=runs, time=time.time())
            record = BatchRecorder(journal, screen)
            try:
                drive([p.job for p in planned if p.state != "done"], limits.retries, force, record)
            finally:
                write_batch_report(folder)
    done = sum(1 for job in jobs if job.name not in record.failed)
    return Ended(folder, done, record.failed)


@contextlib.contextmanager
def _workforce(jobs: Sequence[Job], limits: Limits, logs: Path, ray: str | None) -> Iterator[Workforce]:
    """Processes on this machine, or a cluster."""
    if ray is None:
        yield Processes(limits, logs)
        return
    from amc.batch.cluster import RayTasks, check_resources, connected

    with connected(ray):
        check_resources(jobs, limits)
        yield RayTasks(limits, logs)


def threads_of(workers: int) -> int:
    """Threads per worker, so that all workers together use every core once."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(asked) if asked.isdecimal() and int(asked) else len(os.sched_getaffinity(0))
    return max(1, cores // workers)


class BatchRecorder(Observer):
    """Writes the events to the batch's journal, and passes them on to the screen."""

    def __init__(self, journal: Journal, screen: Observer) -> None:
        self._journal, self._screen = journal, screen
        self.failed: dict[str, str] = {}

    def started(self, job: Job, attempt: int) -> None:
        self._journal.append("start", name=job.name, attempt=attempt, time=time.time())
        self._screen.started(job, attempt)

    def ended(self, outcome: Outcome) -> None:
        reason = outcome.failure.reason if outcome.failure else None
        self._journal.append("end", name=outcome.job.name, attempt=outcome.attempt, error=reason, last=outcome.last,
                             time=time.time())  # fmt: skip
        if reason is not None and outcome.last:
            self.failed[outcome.job.name] = reason
        self._screen.ended(outcome)

    def tick(self) -> None:
        self._screen.tick()
