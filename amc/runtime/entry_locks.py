"""Locks of the cache's entries: what several processes want is computed by one of them while the others wait."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from amc.runtime.files import opened

LOCK_SECONDS = 600.0
"""Longest to wait for another process that computes the same; then it is computed here as well."""

Resting = Callable[[], AbstractContextManager[None]]
"""What a process is in while it waits for another one that computes what it wants
(`amc.runtime.locks.MeasurementLock.released`)."""


@contextlib.contextmanager
def locked(path: Path, resting: Resting, seconds: float | None = None, needed: bool = False) -> Iterator[None]:
    """One process at a time. Where there can be no lock there is none: it only saves work.

    Nor is a process waited for that has stopped: after so many ``seconds`` it goes on without, or raises OSError where
    the lock is ``needed``.
    """
    file, held = None, True  # where there are no locks
    with contextlib.suppress(OSError, ValueError, ImportError):
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = os.fdopen(opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, own=True, mode=0o600), "ab")
        held = _try_lock(file)
        if not held:
            with resting():
                held = _wait_for_lock(file, LOCK_SECONDS if seconds is None else seconds)
    try:
        if needed and not held:
            raise BlockingIOError(errno.EAGAIN, "another process holds it")
        yield
    finally:
        if file is not None:
            file.close()


def _try_lock(file: IO[bytes]) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(file: IO[bytes], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (held := _try_lock(file)) and time.monotonic() < end:
        time.sleep(0.05)
    return held
