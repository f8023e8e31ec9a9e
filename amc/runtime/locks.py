"""Taking turns on one machine, so that a measurement of latency has it to itself.

Two locks in a folder of the user's. Runs hold ``work`` shared while they compute; who measures holds it alone. ``gate``
keeps a measurer from starving: it is held alone from the moment that one wants to measure, and runs look at it at every
step (`Machine.pause`), let go of ``work`` and wait. Locks end with their process, however that ends.

A process that was stopped in the middle cannot hold the others up for ever: whoever has waited long enough goes on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # there are no such locks on this system: nobody takes turns
    fcntl = None  # type: ignore[assignment]

LONGEST_WAIT = 30.0
"""Seconds that somebody who wants to measure waits for the others' next step, and they for the measurement."""
_POLL = 0.005
_IMPATIENT = 0.2


class Machine:
    """One process' part in taking turns. In a ``with`` block it counts as working."""

    def __init__(self, folder: Path | None = None, longest_wait: float = LONGEST_WAIT) -> None:
        self._folder = folder or _folder()
        self._longest = longest_wait
        self._gate: BufferedRandom | None = None
        self._work: BufferedRandom | None = None
        self._measuring = self._in_vain = False

    def __enter__(self) -> Machine:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._gate, self._work = (_opened(self._folder / name) for name in ("gate", "work"))
        self._begin_work()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._gate, self._work):
            if file is not None:
                file.close()
        self._gate = self._work = None

    def pause(self) -> None:
        """A moment at which this process can wait: it does while another one measures or wants to."""
        if self._gate is None or self._work is None or self._measuring:
            return
        if _try(self._gate, fcntl.LOCK_SH):
            fcntl.flock(self._gate, fcntl.LOCK_UN)
            return
        fcntl.flock(self._work, fcntl.LOCK_UN)
        self._begin_work()

    @contextlib.contextmanager
    def measuring(self) -> Iterator[bool]:
        """Alone on the machine, as far as amc goes; gives whether that is so."""
        if self._gate is None or self._work is None:
            yield False
            return
        fcntl.flock(self._work, fcntl.LOCK_UN)
        self._measuring = True
        try:
            alone = self._wait(self._gate, fcntl.LOCK_EX) and self._wait(self._work, fcntl.LOCK_EX)
            self._in_vain = not alone
            yield alone
        finally:
            for file in (self._work, self._gate):
                fcntl.flock(file, fcntl.LOCK_UN)
            self._measuring = False
            self._begin_work()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """While this process waits for something else: who measures need not wait for it."""
        if self._work is None or self._measuring:
            yield
            return
        fcntl.flock(self._work, fcntl.LOCK_UN)
        try:
            yield
        finally:
            self._begin_work()

    def _begin_work(self) -> None:
        if self._gate is not None and self._work is not None:
            self._wait(self._gate, fcntl.LOCK_SH)
            self._wait(self._work, fcntl.LOCK_SH)
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def _wait(self, file: BufferedRandom, how: int) -> bool:
        """Whether the lock was to be had in time; who has waited in vain once is impatient from then on."""
        end = time.monotonic() + (min(self._longest, _IMPATIENT) if self._in_vain else self._longest)
        while not _try(file, how):
            if time.monotonic() > end:
                self._in_vain = True
                return False
            time.sleep(_POLL)
        return True


def _folder() -> Path:
    """``$AMC_LOCKS``, or a folder of the user's among the temporary ones."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(os.environ.get("AMC_LOCKS") or Path(tempfile.gettempdir(), f"amc-{user}"))


def _opened(path: Path) -> BufferedRandom:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return os.fdopen(handle, "r+b")


def _try(file: BufferedRandom, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
