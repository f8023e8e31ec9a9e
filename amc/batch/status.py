"""The progress of runs, read from their folders. The runs may be running in other processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amc.errors import BundleError
from amc.reports.read import read_batch_journal
from amc.runtime.journal import read_records
from amc.runtime.progress import read_progress


@dataclass(frozen=True)
class Status:
    """One run. ``state`` is waiting, running, stopped (can be resumed), done or failed."""

    name: str
    state: str
    stage: str = ""
    share: float = 0.0
    """Share of the stage that is done."""
    note: str = ""
    evaluations: int = 0
    rate: float | None = None
    """Evaluations per minute, over the last ten."""
    seconds: float = 0.0
    """Seconds spent so far, without interruptions."""
    left: float | None = None
    """Seconds until the current stage ends. None if unknown."""


def statuses(folder: Path, settled: dict[str, Status] | None = None) -> list[Status]:
    """The runs of a batch, or the single run in a folder. Raises BundleError if there is neither.

    ``settled`` is for repeated calls: it collects runs that are done, and they are not read again.
    """
    if (folder / "batch.jsonl").is_file():
        batch = read_batch_journal(folder)
        known = {} if settled is None else settled
        found = [known.get(name) or status(folder / name, batch.failures.get(name)) for name in batch.places]
        known |= {run.name: run for run in found if run.state == "done"}
        return found
    if (folder / "journal.jsonl").is_file():
        return [status(folder)]
    raise BundleError(f"{folder} contains neither a run nor a batch.")


def status(folder: Path, failure: str | None = None) -> Status:
    """The status of the run in a folder. ``failure`` is the reason why its last attempt failed, if it did."""
    path, now, name = folder / "journal.jsonl", time.time(), folder.resolve().name
    records = read_records(path) if path.exists() else []
    spent = sum(float(r["seconds"]) for r in records if r["kind"] == "stage")
    times = [float(r["time"]) for r in records if r["kind"].endswith("evaluation") and "time" in r]
    rate = (
        60 * (len(times[-10:]) - 1) / (times[-1] - times[-10:][0]) if len(times) > 1 and times[-1] > times[0] else None
    )
    progress = read_progress(folder)
    if any(r["kind"] == "done" for r in records):
        return Status(name, "done", evaluations=len(times), rate=None, seconds=spent)
    if progress is not None and progress.alive:
        inside = now - progress.began
        left = inside * (1 - progress.share) / progress.share if progress.share > 0.02 else None
        stage, share, note = progress.stage, progress.share, progress.note
        return Status(name, "running", stage, share, note, len(times), rate, spent + inside, left)
    if failure is not None:
        return Status(name, "failed", note=failure, evaluations=len(times), seconds=spent)
    return Status(name, "stopped" if records else "waiting", evaluations=len(times), seconds=spent)


def time_left(runs: Sequence[Status]) -> float | None:
    """Seconds until all runs are done, if each takes as long as the median of those that are. None before the first."""
    done = [run.seconds for run in runs if run.state == "done"]
    if not done:
        return None
    rest = [run.seconds for run in runs if run.state in ("waiting", "running", "stopped")]
    typical, workers = statistics.median(done), max(1, sum(run.state == "running" for run in runs))
    return sum(max(0.0, typical - spent) for spent in rest) / workers
