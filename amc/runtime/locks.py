"""The measurement lock: who measures latency has the machine to itself, as far as amc goes.

Every process that computes holds a lock of its own in a folder of the user's, ``working/*.lock``. Who wants to measure
takes ``measure.lock`` and then waits for each of the others. They look at ``measure.lock`` after every step of their
work (`MeasurementLock.give_way`), and let go of their own lock while it is taken. Locks end with their process, however
that ends.

A process that was stopped in the middle cannot hold the others up for ever: who has waited long enough goes on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock, Timeout

LONGEST_WAIT = 30.0
"""Seconds that a measurement waits for the others' next step, and they for the measurement."""
_POLL = 0.005
_IMPATIENT = 0.2


class MeasurementLock:
    """One process' part in taking turns. In a ``with`` block it counts as working.

    >>> import tempfile
    >>> with MeasurementLock(Path(tempfile.mkdtemp())) as lock, lock.exclusive() as alone:
    ...     alone
    True
    """

    def __init__(self, folder: Path | None = None, longest_wait: float = LONGEST_WAIT) -> None:
        self._folder, self._longest = folder or _folder(), longest_wait
        self._measure: BaseFileLock | None = None
        self._own: BaseFileLock | None = None
        self._measuring = self._in_vain = False

    def __enter__(self) -> MeasurementLock:
        working = self._folder / "working"
        with contextlib.suppress(OSError):  # where there can be no locks nobody takes turns
            working.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, own = tempfile.mkstemp(".lock", f"{os.getpid()}-", working)
            os.close(handle)
            self._own = FileLock(own, mode=0o600)
            self._measure = FileLock(self._folder / "measure.lock", mode=0o600)
        self._work()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own is not None:
            self._own.release()
            with contextlib.suppress(OSError):
                Path(self._own.lock_file).unlink()
        self._measure = self._own = None

    def give_way(self) -> None:
        """Between two steps of work: waits while another process measures or wants to."""
        if self._measure is None or self._own is None or self._measuring:
            return
        if _acquired(self._measure, 0.0):
            self._measure.release()
            return
        self._own.release()
        self._work()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[bool]:
        """Alone on the machine, as far as amc goes. Gives whether that is so."""
        if self._measure is None or self._own is None:
            yield False
            return
        self._own.release()
        self._measuring = True
        try:
            alone = self._waited(self._measure) and self._others_wait()
            self._in_vain = not alone
            yield alone
        finally:
            self._measure.release()
            self._measuring = False
            self._work()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """While this process waits for something else: who measures need not wait for it."""
        if self._own is None or self._measuring:
            yield
            return
        self._own.release()
        try:
            yield
        finally:
            self._work()

    def _work(self) -> None:
        """Count as working again, once nobody measures."""
        if self._measure is not None and self._own is not None:
            free = self._waited(self._measure)
            self._waited(self._own)
            if free:
                self._measure.release()

    def _others_wait(self) -> bool:
        """Whether no other process is working. Locks that ended processes have left behind are removed."""
        assert self._own is not None
        for path in sorted((self._folder / "working").glob("*.lock")):
            if path != Path(self._own.lock_file):
                other = FileLock(path, mode=0o600)
                if not self._waited(other):
                    return False
                with contextlib.suppress(OSError):
                    path.unlink()  # a process that only gave way makes it anew
                other.release()
        return True

    def _waited(self, lock: BaseFileLock) -> bool:
        """Whether a lock was to be had in time; who has waited in vain once is impatient from then on."""
        if _acquired(lock, min(self._longest, _IMPATIENT) if self._in_vain else self._longest):
            return True
        self._in_vain = True
        return False


def _folder() -> Path:
    """``$AMC_LOCKS``, or a folder of the user's among the temporary ones."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(os.environ.get("AMC_LOCKS") or Path(tempfile.gettempdir(), f"amc-{user}"))


def _acquired(lock: BaseFileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL)
    except Timeout:
        return False
    except OSError:  # a file system without locks
        return True
    return True
