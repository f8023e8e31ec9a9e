"""How a run tells what it is doing. The flow calls these; what is shown is up to the caller."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class Monitor(Protocol):
    """Told of stages as they begin and end, and of progress within them."""

    def begin(self, stage: str) -> None:
        """A stage begins."""

    def progress(self, share: float, note: str = "") -> None:
        """The current stage is done to ``share`` in [0, 1]; ``note`` is the best so far, or what is worked on."""

    def end(self, seconds: float) -> None:
        """The current stage is done."""

    def say(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    """Shows nothing."""

    def begin(self, stage: str) -> None: ...

    def progress(self, share: float, note: str = "") -> None: ...

    def end(self, seconds: float) -> None: ...

    def say(self, text: str) -> None: ...


class Logged:
    """Logs, under the name ``amc``: stages and what the user should know as information, progress for debugging."""

    def __init__(self) -> None:
        self._log, self._stage = logging.getLogger("amc"), ""

    def begin(self, stage: str) -> None:
        self._stage = stage
        self._log.debug("%s: begins", stage)

    def progress(self, share: float, note: str = "") -> None:
        self._log.debug("%s: %.0f %% %s", self._stage, 100 * share, note)

    def end(self, seconds: float) -> None:
        self._log.info("%s: done in %.1f s", self._stage, seconds)

    def say(self, text: str) -> None:
        self._log.log(logging.WARNING if text.startswith("warning") else logging.INFO, "%s", text)


@runtime_checkable
class StagesMonitor(Protocol):
    """A monitor that shows the stages to come."""

    def plan(self, stages: Sequence[str]) -> None:
        """These stages follow, some of them perhaps several times."""


def announce(monitor: Monitor, stages: Sequence[str]) -> None:
    """Tell the stages to come, where the monitor shows them."""
    if isinstance(monitor, StagesMonitor):
        monitor.plan(stages)
