"""The progress of a run on the terminal, and plain lines where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from amc.errors import without_escapes
from amc.runtime.monitor import Silent

_LINES_EVERY = 30.0
"""Seconds between two lines of one stage, where there is no terminal."""


def progress_console() -> Console:
    """Stderr. Interactive (a picture that changes) on a terminal that can do it, and not in a CI log."""
    able = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and not os.environ.get("CI")
    return Console(stderr=True, highlight=False, force_interactive=able)


@dataclass
class _Row:
    """One stage as it is shown."""

    name: str
    began: float | None = None
    """On the monotonic clock; None: it is still to come."""
    seconds: float | None = None
    """How long it took; None: it is not done."""
    share: float = 0.0
    note: str = ""

    @property
    def left(self) -> float | None:
        """Seconds until it is done, at the pace so far."""
        if self.began is None or self.seconds is not None or self.share < 0.02:
            return None
        return (time.monotonic() - self.began) * (1 - self.share) / self.share


class Display:
    """A row for every stage: how far it is, time spent and time left, the best so far. Stages to come are listed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or progress_console()
        self._rows: list[_Row] = []
        self._now: _Row | None = None
        self._began, self._told = time.monotonic(), 0.0
        live = self._console.is_interactive and self._console.is_terminal
        self._live = Live(console=self._console, get_renderable=self._picture, refresh_per_second=8) if live else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._rows = [row for row in self._rows if row.began is not None]
            self._live.stop()
        elif kind is None and len(self._rows) > 1:
            self._line("total", time.monotonic() - self._began, "")

    def plan(self, stages: Sequence[str]) -> None:
        """The stages to come."""
        self._rows = [row for row in self._rows if row.began is not None] + [_Row(stage) for stage in stages]

    def begin(self, stage: str) -> None:
        row = next((row for row in self._rows if row.name == stage and row.began is None), None)
        if row is None:
            row = _Row(stage)
            done = sum(row.began is not None for row in self._rows)
            self._rows.insert(done, row)
        row.began = self._told = time.monotonic()
        self._now = row

    def progress(self, share: float, note: str = "") -> None:
        row = self._now
        if row is None or row.began is None:
            return
        row.share, row.note = min(1.0, share), note or row.note
        now = time.monotonic()
        if self._live is None and now - self._told > _LINES_EVERY:
            self._told = now
            self._line(row.name, now - row.began, f"{100 * row.share:.0f} % done  {row.note}")

    def end(self, seconds: float) -> None:
        row, self._now = self._now, None
        if row is None:
            return
        row.seconds, row.share = seconds, 1.0
        if self._live is None:
            self._line(row.name, seconds, row.note)

    def say(self, text: str) -> None:
        self._console.print(without_escapes(text), markup=False, highlight=False, soft_wrap=self._live is None)

    def _line(self, name: str, seconds: float, note: str) -> None:
        self.say(f"{name:<10} {seconds:7.1f} s  {note}".rstrip())

    def _picture(self) -> RenderableType:
        """The rows, and how much of all is done. The notes take the room that is left of the line."""
        table = Table.grid(padding=(0, 1))
        for least in (1, 9, 12):
            table.add_column(no_wrap=True, min_width=least)
        for least in (5, 5, 9):  # fixed, so that nothing moves while numbers grow
            table.add_column(justify="right", no_wrap=True, min_width=least)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.expand = True
        for row in self._rows:
            table.add_row(*_cells(row))
        if len(self._rows) < 2:
            return table
        done = sum(row.seconds is not None for row in self._rows)
        spent = clock(time.monotonic() - self._began)
        return Group(table, Text(f"  {done} of {len(self._rows)} stages done, {spent} in total", style="bold"))


def _cells(row: _Row) -> list[RenderableType]:
    """Mark, name, bar, share, time spent, time left and note of a stage."""
    if row.began is None:
        return [" ", Text(f"{row.name:<10}", style="dim"), "", "", "", "", ""]
    done = row.seconds is not None
    spent = row.seconds if row.seconds is not None else time.monotonic() - row.began
    left = "" if row.left is None else f"{clock(row.left)} left"
    mark = Text("✓", style="green") if done else Text("›", style="bold")
    bar = ProgressBar(total=1.0, completed=row.share, width=12)
    return [mark, _plain(row.name), bar, f"{100 * row.share:.0f} %", clock(spent), left, _plain(row.note)]


def clock(seconds: float) -> str:
    """A time as minutes and seconds.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Warnings(Silent):
    """Shows warnings only."""

    def say(self, text: str) -> None:
        if text.startswith("warning"):
            progress_console().print(without_escapes(text), markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> Text:
    """A text as it is: without markup, and without escapes that the terminal acts on."""
    return Text(without_escapes(" ".join(text.split())))
