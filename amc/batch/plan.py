"""The state of every run of a batch, and estimates of the time of the rest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amc.batch.matrix import Job
from amc.config import binding, from_run
from amc.errors import AmcError, BundleError
from amc.runtime.journal import read_records


@dataclass(frozen=True)
class Planned:
    """A run and its state: ``new``, ``begun`` (started but not done) or ``done``."""

    job: Job
    state: str
    seconds: float | None
    """The seconds that it took. For a run that is not done, an estimate from similar runs, or None."""
    like: int = 0
    """Number of runs behind the estimate."""


def plan(jobs: Sequence[Job]) -> list[Planned]:
    """The state of every run. Raises BundleError if a folder holds a run with another configuration."""
    seen = [(job, *_look(job)) for job in jobs]
    known = [(job, spent) for job, state, spent in seen if state == "done"]
    return [_planned(job, state, spent, known) for job, state, spent in seen]


def _look(job: Job) -> tuple[str, float]:
    """The state of a run, and the seconds spent on it."""
    journal, config = job.folder / "journal.jsonl", job.folder / "config.yaml"
    if not journal.exists() or not config.exists():
        return "new", 0.0
    try:
        before = from_run(job.folder)
    except AmcError as error:
        raise BundleError(f"run {job.name}: {error}") from None
    changed = _difference(binding(before), binding(job.config))
    if changed:
        raise BundleError(f"{job.folder} was started with another configuration ({changed}). Use another --out, "
                          "or move that folder away.")  # fmt: skip
    records = read_records(journal)
    spent = sum(float(r["seconds"]) for r in records if r["kind"] == "stage")
    return ("done" if any(r["kind"] == "done" for r in records) else "begun"), spent


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> str:
    """The first key in which two configurations differ, with both values. Empty if they are equal."""
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = _difference(old, value, f"{where}{key}.")
            if inner:
                return inner
        elif old != value:
            return f"{where}{key} was {old}, now {value}"
    return ""


def _planned(job: Job, state: str, spent: float, known: Iterable[tuple[Job, float]]) -> Planned:
    if state == "done":
        return Planned(job, state, spent)
    kinds: dict[int, list[float]] = {}
    for other, seconds in known:
        if (other.config.model, other.config.data) == (job.config.model, job.config.data):
            near = _effort(other) == _effort(job)
            kinds.setdefault(0 if near else 1, []).append(seconds)
    if not kinds:
        return Planned(job, state, None)
    alike = kinds[min(kinds)]
    return Planned(job, state, max(0.0, statistics.median(alike) - spent), len(alike))


def _effort(job: Job) -> Any:
    search = job.config.search
    return search.searcher, search.searcher_options, search.evaluations, job.config.finetune
