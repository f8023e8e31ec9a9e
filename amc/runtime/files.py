"""Files: written so that a crash leaves the old one or the new one, and read as if a stranger had made them.

A folder that is passed on may hold anything under a name that is read: a link to a file elsewhere, a FIFO on which
opening waits for ever, a device without an end, gigabytes. Whatever is read or opened goes through `opened`,
`read_bytes`, `read_json` or `check_file`: regular files only, no larger than is sensible, and in a run's own folder
(``own``) no links.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

MIB = 1 << 20
LARGEST = 256 * MIB
"""Bytes of a file of plain values, unless its reader says otherwise."""


def opened(path: Path, flags: int = os.O_RDONLY, own: bool = False, mode: int = 0o666) -> int:
    """A descriptor of a regular file, opened without waiting. Raises OSError.

    ``own``: it lies in a folder of ours, where nothing is a link, so none is followed.
    """
    try:
        handle = os.open(path, flags | _NO_WAIT | (_NO_LINKS if own else 0), mode)
    except ValueError:  # a NUL character
        raise OSError(errno.EINVAL, "it can be no path", str(path)) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads, a socket
            _refuse(path)
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        _refuse(path)
    return handle


_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def _refuse(path: Path) -> NoReturn:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_bytes(path: Path, most: int = LARGEST, own: bool = False) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises OSError."""
    with os.fdopen(opened(path, own=own), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most // MIB} MiB", str(path))
    return content


def read_json(path: Path, most: int = LARGEST, own: bool = False) -> Any:
    """The plain values in a JSON file. Raises OSError, or ValueError for what is no JSON, NaN and infinity too."""
    return parse_json(read_bytes(path, most, own))


def parse_json(content: bytes | str) -> Any:
    """Plain values out of JSON. Raises ValueError, also for nesting without end and for numbers that are none.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        return json.loads(content, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _finite(word: str) -> float:
    number = float(word)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{word[:20]} is too large")
    return number


def check_file(path: Path, most: int | None = None, own: bool = False) -> None:
    """Raise OSError unless ``path`` is a regular file, which a library may open by its name."""
    handle = opened(path, own=own)
    try:
        if most is not None and os.fstat(handle).st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most // MIB} MiB", str(path))
    finally:
        os.close(handle)


def check_folder(folder: Path) -> None:
    """Raise OSError where something in a folder is neither a regular file nor a folder: nothing leads out of it."""
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        if entry.is_symlink():
            raise OSError(errno.ELOOP, "it is a link", entry.path)
        if not entry.is_file() and not entry.is_dir():
            raise OSError(errno.EINVAL, "it is no regular file", entry.path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed onto it when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link that somebody has put there would be followed
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left behind."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content by ``text``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace the file's content by ``value`` as indented JSON. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
