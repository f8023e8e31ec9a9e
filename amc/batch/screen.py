"""All runs of a batch on one screen. Without a terminal, plain lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from amc.batch.drive import Observer, Outcome
from amc.batch.matrix import Job
from amc.batch.status import Status, statuses, time_left
from amc.errors import BundleError, printable
from amc.reports.human import seconds
from amc.runtime.display import progress_console

_EVERY = 0.5  # minimum seconds between two reads of the folders
_SHARE = 10  # and at least this many times the last read, which is slow with thousands of runs
_ROWS = 30
_ORDER = ("running", "failed", "stopped", "waiting", "done")


def status_table(runs: Sequence[Status]) -> Table:
    """A table with one row per run, running ones first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "stage", "evaluations", "per minute", "time", "stage ends in"):
        table.add_column(column, justify="left" if column in ("run", "state", "stage") else "right")
    for run in sorted(runs, key=lambda r: _ORDER.index(r.state))[:_ROWS]:
        stage = f"{run.stage} {100 * run.share:.0f} %" if run.state == "running" else run.note
        rate = "" if run.rate is None else f"{run.rate:.0f}"
        spent, left = (seconds(run.seconds) if run.seconds else ""), ("" if run.left is None else seconds(run.left))
        words = (run.name, run.state, stage, str(run.evaluations or ""), rate, spent, left)
        table.add_row(*(Text(printable(word)) for word in words))
    return table


def summary_line(runs: Sequence[Status]) -> str:
    """The number of runs in every state, and the time left."""
    counts = {state: sum(run.state == state for run in runs) for state in _ORDER}
    numbers = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    left = time_left(runs)
    open_runs = counts["running"] + counts["waiting"] + counts["stopped"]
    hidden = f" (the first {_ROWS} are shown)" if len(runs) > _ROWS else ""
    when = "" if not open_runs else "; time left unknown until one finishes" if left is None else (
        f"; about {seconds(left)} left, if the others take as long as the finished ones")  # fmt: skip
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {numbers}{when}{hidden}"


class Screen(Observer):
    """Shows a batch while it runs."""

    def __init__(
        self, folder: Path, console: Console | None = None, quiet: bool = False, live: bool | None = None
    ) -> None:
        """``quiet``: report failures only. ``live``: update a table in place, or print lines; None: if interactive."""
        self._folder, self._quiet = folder, quiet
        self._console = console or progress_console()
        wanted = self._console.is_interactive if live is None else live
        self._live = Live(console=self._console, auto_refresh=False) if wanted and not quiet else None
        self._settled: dict[str, Status] = {}
        self._next = 0.0

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._picture(), refresh=True)  # as it is now, not as at the last tick
            self._live.stop()

    def started(self, job: Job, attempt: int) -> None:
        again = f" (attempt {attempt})" if attempt > 1 else ""
        if not self._quiet:
            self._say(f"{job.name}: started{again}")

    def ended(self, outcome: Outcome) -> None:
        name, failure = outcome.job.name, outcome.failure
        again = "" if outcome.last else "; it will be tried again"
        if failure is not None or not self._quiet:
            self._say(f"{name}: done" if failure is None else f"{name}: failed: {failure.reason}{again}")

    def tick(self) -> None:
        begun = time.monotonic()
        if self._live and begun >= self._next:
            self._live.update(self._picture(), refresh=True)
            self._next = time.monotonic() + max(_EVERY, _SHARE * (time.monotonic() - begun))

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def _picture(self) -> Any:
        from rich.console import Group

        try:
            runs = statuses(self._folder, self._settled)
        except BundleError:
            return ""
        return Group(status_table(runs), summary_line(runs))
