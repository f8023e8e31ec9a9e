"""The live display of a run, and plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from amc.errors import without_escapes


class Display:
    """One line a stage: what, how far, the best so far, time spent and time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._bar: TaskID | None = None
        self._stage = ""
        self._note = ""

    def __enter__(self) -> Display:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def begin(self, stage: str) -> None:
        self._stage, self._note = stage, ""
        if self._live:
            self._bar = self._bars.add_task(_plain(f"{stage:<12}"), total=1.0, note="")

    def progress(self, share: float, note: str = "") -> None:
        self._note = note or self._note
        if self._bar is not None:
            self._bars.update(self._bar, completed=min(1.0, share), note=_plain(self._note))

    def end(self, seconds: float) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, completed=1.0)
            self._bar = None
        elif not self._live:
            self._console.print(_plain(f"{self._stage:<12} {seconds:7.1f} s  {self._note}"), highlight=False)

    def say(self, text: str) -> None:
        self._console.print(_plain(text), highlight=False)


def _plain(text: str) -> str:
    """A text as it is: without markup, and without escapes that the terminal acts on."""
    return escape(without_escapes(text))
