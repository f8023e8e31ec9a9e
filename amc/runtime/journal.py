"""An append-only record, one JSON object a line, flushed to disk line by line.

A line that was being written when the machine went down is torn; it is dropped when the journal is opened.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from amc.errors import BundleError, first_line
from amc.runtime.files import opened, parse_json, read_bytes
from amc.runtime.records import check_record

PATIENCE = 5.0
"""Seconds to wait for another process that has the journal: one whose batch was killed is about to stop."""

_ODD = (errno.ELOOP, errno.EINVAL, errno.EISDIR)
"""What is in the journal's place is no file of ours."""

_BEGINNING = b'{"kind": "'
"""What every line begins with."""

Follower = Callable[[dict[str, Any], bool], None]
"""Told of a record, and whether it was there before."""


class Journal:
    """Records in a file, oldest first. ``None`` as the path keeps them in memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: list[dict[str, Any]] = []
        self._file: FileIO | None = None
        self._followers: list[Follower] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = FileIO(opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, own=True), "r+")
            except OSError as error:
                if error.errno not in _ODD:
                    raise
                raise _unreadable(path, error) from None
            try:
                lock_file(self._file, path)  # before reading: what looks torn may be a line that another one is writing
                self._records, good = _read(path)
                self._file.truncate(good)
            except BaseException:
                self._file.close()
                raise

    def append(self, kind: str, **record: Any) -> None:
        """Add a record and see it onto the disk. When that fails, the file is as it was before."""
        entry = {"kind": kind, **record}
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        if self._file is not None:
            start = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(start)
                raise
        self._records.append(entry)
        for follower in self._followers:
            follower(entry, False)

    def follow(self, follower: Follower) -> None:
        """Tell of every record: of those that are there already now, of the others as they come."""
        for record in self._records:
            follower(record, True)
        self._followers.append(follower)

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """The records of one kind, oldest first."""
        return (r for r in self._records if r["kind"] == kind)

    def last(self, kind: str) -> dict[str, Any] | None:
        """The newest record of one kind."""
        return next((r for r in reversed(self._records) if r["kind"] == kind), None)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a journal that another process may be writing. Raises BundleError."""
    return _read(path)[0]


def lock_file(file: FileIO, path: Path) -> None:
    """Keep other processes out. Where the system has no such locks there are none."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise BundleError(f"{path.parent} is in use by another run.") from None
            time.sleep(0.05)
        except (OSError, ImportError):
            return
        else:
            return


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole records of a journal, every one of them checked, and the byte where they end."""
    try:
        data = read_bytes(path, own=True)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise _unreadable(path, error) from None
    good = data.rfind(b"\n") + 1
    lines, torn = data[:good].split(b"\n")[:-1], data[good:]
    records = [_record(line, number, path) for number, line in enumerate(lines, start=1)]
    if not _BEGINNING.startswith(torn[: len(_BEGINNING)]):  # not ours: it is not to be cut off
        raise _damaged(path, len(lines) + 1)
    return records, good


def _record(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError:
        raise _damaged(path, number) from None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise _damaged(path, number)
    try:
        check_record(record)
    except ValueError as error:
        raise _damaged(path, number, f" ({first_line(error)})") from None
    return record


def _damaged(path: Path, number: int, why: str = "") -> BundleError:
    return BundleError(f"{path} is damaged in line {number}{why}: move it away to start the search anew.")


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"cannot read {path}: {error.strerror}.")
