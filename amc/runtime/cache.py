"""What has been computed once, kept for other runs: content-addressed, shared by any number of a user's processes.

An entry's name is a message authentication code of its identity: everything that its content depends on, the code and
the libraries included (`amc.runtime.provenance`). So there is nothing to invalidate: what has changed has another name.

===========  ===================================================================================
tensors      one safetensors file: moments, channel orders, ONNX bytes
table        one file of lines, appended to: scores of policies, layer errors, baselines, times
===========  ===================================================================================

Every entry carries its identity and a code under the user's key (`amc.runtime.secret`); one that is damaged, or that
another user has made, counts as not there. Writers write beside and rename, or append whole lines under a lock, so a
reader never sees half of anything, and a writer that is killed leaves nothing that matters. What another user owns or
may write is not read. A full disk or a read-only folder is no error: nothing is kept, and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from amc.runtime.entry_locks import Resting, locked
from amc.runtime.files import opened, replacing
from amc.runtime.hashing import tensors_digest
from amc.runtime.secret import code_of, key_file, user_key

LIMIT = 2 << 30
"""Bytes that the cache may have, unless ``$AMC_CACHE_BYTES`` says otherwise; what was not used for longest goes."""

_SLOTS = 16  # keys of a table that can be computed at a time
_ENTRY = re.compile(r"[0-9a-f]{64}\.(safetensors|jsonl)")
_LEFT = re.compile(r"\.[0-9a-f]{64}\.safetensors\.\d+\.tmp")
_LEFT_SECONDS = 3600.0  # after which a temporary file's writer is gone
_REST = re.compile(r"[0-9a-f]{64}(\.\d+)?\.lock|\.[0-9a-f]{64}\.safetensors\.\d+\.tmp")


def cache_folder() -> Path:
    """The user's cache: ``$AMC_CACHE``, or ``amc`` in the system's folder for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AMC_CACHE") or Path(base, "amc"))


def identity_key(key: bytes, kind: str, identity: Mapping[str, Any]) -> str:
    """The name of an entry: 64 hex digits from what it depends on and the user's key."""
    return code_of(key, "name", kind, _dump(identity))


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


Identify = Callable[[], Mapping[str, Any]]
"""Gives an entry's identity; not asked where nothing is kept."""


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache, for people to look at."""

    kind: str
    path: Path
    size: int
    used: float
    """When, in seconds since the epoch."""


class Cache:
    """A folder of entries. ``None`` keeps nothing and finds nothing."""

    def __init__(self, folder: Path | None, limit: int | None = None, resting: Resting = nullcontext) -> None:
        """While it waits for another process, it is ``resting()``."""
        given = os.environ.get("AMC_CACHE_BYTES", "")
        self.folder, self._resting = folder, resting
        self.limit = limit if limit is not None else int(given) if given.isdecimal() else LIMIT

    @cached_property
    def _key(self) -> bytes | None:
        """The user's key; None where nothing can be kept."""
        return None if self.folder is None else user_key()

    def trouble(self) -> str | None:
        """Why nothing new can be kept, for people; None where it can."""
        if self.folder is None:
            return None
        if self._key is None:
            return f"nothing is read from or kept in the cache: the key {_key_name()} can be neither read nor made"
        with contextlib.suppress(OSError, ValueError):  # ValueError: no path, such as one with a NUL
            there = next(path for path in (self.folder, *self.folder.absolute().parents) if _is_there(path))
            if os.access(there, os.W_OK | os.X_OK) and there.is_dir():
                return None
        return f"the cache {self.folder} cannot be written to: nothing new is kept in it"

    def tensors(self, kind: str, identify: Identify, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The entry's tensors; computed where it is not there, by one process while the others wait for it."""
        if self.folder is None or self._key is None:
            return compute()
        identity = identify()
        path = self.path_of(kind, identity, "safetensors")
        found = _load(path, identity, self._key)
        if found is None:
            with locked(path.with_suffix(".lock"), self._resting):
                found = _load(path, identity, self._key)
                if found is None:
                    found = compute()
                    with contextlib.suppress(OSError, ValueError):
                        _save(path, identity, found, self._key)
                        self.evict()
        return found

    def table(self, kind: str, identify: Identify) -> Table:
        """The table of that identity: new, or with what others have put into it."""
        if self.folder is None or self._key is None:
            return Table(None, {}, b"")
        self.evict()
        identity = identify()
        return Table(self.path_of(kind, identity, "jsonl"), identity, self._key, self._resting)

    def path_of(self, kind: str, identity: Mapping[str, Any], suffix: str) -> Path:
        """Where an entry is. There is a folder and a key."""
        assert self.folder is not None
        assert self._key is not None
        return self.folder / kind / f"{identity_key(self._key, kind, identity)}.{suffix}"

    def entries(self) -> list[CacheEntry]:
        """Everything that is kept, the longest unused first."""
        found = []
        for path in self._files(_ENTRY):
            with contextlib.suppress(OSError):
                stat = path.lstat()
                found.append(CacheEntry(path.parent.name, path, stat.st_size, stat.st_mtime))
        return sorted(found, key=lambda e: e.used)

    def clear(self) -> int:
        """Remove every entry; gives the bytes that were freed."""
        freed = sum(_remove(entry) for entry in self.entries())
        for rest in self._files(_REST):
            with contextlib.suppress(OSError):
                rest.unlink(missing_ok=True)
        return freed

    def _files(self, name: re.Pattern[str]) -> Iterator[Path]:
        """The cache's own files of such a name: other files in the folder are left alone."""
        with contextlib.suppress(OSError):  # a folder that cannot be listed holds nothing
            yield from [path for path in self.folder.glob("*/*") if name.fullmatch(path.name)] if self.folder else ()

    def evict(self) -> None:
        """Remove what killed writers have left, and what was not used for longest until the limit holds.

        A temporary file whose writer may still be there is kept, and counts. Where the folder cannot be changed, it
        stays as it is.
        """
        total = 0
        for left in self._files(_LEFT):
            with contextlib.suppress(OSError):
                stat = left.lstat()
                total += stat.st_size
                if time.time() - stat.st_mtime > _LEFT_SECONDS:
                    left.unlink()
                    total -= stat.st_size
        entries = self.entries()
        total += sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.limit:
                return
            total -= _remove(entry)


class Table:
    """Values by key, both JSON, that grow. What other processes append is seen when it is asked for."""

    def __init__(
        self, path: Path | None, identity: Mapping[str, Any], key: bytes, resting: Resting = nullcontext
    ) -> None:
        self._path, self._identity, self._resting = path, dict(identity), resting
        self._key = bytes.fromhex(code_of(key, "table", path.name)) if path else b""
        self._values: dict[str, Any] = {}
        self._read = 0  # bytes of the file that have been read

    def get(self, key: Any) -> Any | None:
        """The value of a key, None where there is none."""
        name = _dump(key)
        if name not in self._values:
            self._refresh()
        return self._values.get(name)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of a key; computed where there is none, by one process while others that want it wait."""
        known = self.get(key)
        if known is not None or self._path is None:
            return compute() if known is None else known
        slot = int(hashlib.sha256(_dump(key).encode()).hexdigest()[:8], 16) % _SLOTS
        with locked(self._path.with_suffix(f".{slot}.lock"), self._resting):
            known = self.get(key)
            if known is None:
                self.put(key, known := compute())
        return known

    def put(self, key: Any, value: Any) -> None:
        """Keep a value."""
        self._values[_dump(key)] = value
        if self._path is not None:
            lock = self._path.with_suffix(".lock")
            with contextlib.suppress(OSError, ValueError), locked(lock, self._resting, 10.0, needed=True):  # no NaN
                self._append([key, value])

    def _append(self, line: Any) -> None:
        """Add a line at the end of the file. A torn one, which a killed writer has left, is closed first."""
        assert self._path is not None
        handle = opened(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, own=True, mode=0o600)
        with os.fdopen(handle, "rb+", buffering=0) as file:
            _check_owner(file.fileno())
            file.seek(0)
            if (
                self._checked(file.readline()) != self._identity
            ):  # new, or its head is damaged: nothing in it is believed
                file.truncate(0)
            size = file.seek(0, os.SEEK_END)
            torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            text = (b"\n" if torn else b"" if size else self._lined(self._identity)) + self._lined(line)
            try:
                if file.write(text) != len(text):
                    raise OSError
            except OSError:
                file.truncate(size)
                raise

    def _refresh(self) -> None:
        """Read what is new in the file. A line whose checksum is wrong is passed over."""
        if self._path is None:
            return
        try:
            with os.fdopen(opened(self._path, own=True), "rb") as file:
                _check_owner(file.fileno())
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        lines = [self._checked(line) for line in whole.splitlines()]
        if self._read == 0:
            if not lines or lines.pop(0) != self._identity:
                return
            with contextlib.suppress(OSError):
                os.utime(self._path)
        self._read += len(whole)
        for line in lines:
            if isinstance(line, list) and len(line) == 2:
                self._values[_dump(line[0])] = line[1]

    def _lined(self, value: Any) -> bytes:
        text = _dump(value)
        return f"{self._code(text.encode())} {text}\n".encode()

    def _checked(self, line: bytes) -> Any:
        """The value in a line; None where it is damaged, or another's."""
        code, _, text = line.rstrip(b"\n").partition(b" ")
        if not hmac.compare_digest(self._code(text).encode(), code):
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None

    def _code(self, text: bytes) -> str:
        return code_of(self._key, text)[:32]


def _save(path: Path, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], key: bytes) -> None:
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = save(plain, {"identity": _dump(identity), "code": _code(plain, path, key)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o600)


def _check_owner(handle: int) -> None:
    """Raise OSError for a file that another user owns or may write to: its content is not believed."""
    if not _owned(os.fstat(handle)):
        raise PermissionError(errno.EPERM, "another user may have written it")


def _owned(stat: os.stat_result) -> bool:
    """Whether what was looked at is this user's, and nobody else may write to it."""
    return not hasattr(os, "geteuid") or (stat.st_uid == os.geteuid() and not stat.st_mode & 0o022)


def is_own_folder(folder: Path) -> bool:
    """Whether a folder is there, is this user's, and nobody else may write into it."""
    try:
        return folder.is_dir() and _owned(folder.stat())
    except (OSError, ValueError):
        return False


def _load(path: Path, identity: Mapping[str, Any], key: bytes) -> dict[str, Tensor] | None:
    """An entry's tensors; None where it is not there, damaged, or another's."""
    try:
        with os.fdopen(opened(path, own=True), "rb") as entry:
            _check_owner(entry.fileno())
        with safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError, ValueError):
        return None
    valid = hmac.compare_digest(str(told.get("code")).encode(), _code(tensors, path, key).encode())
    if told.get("identity") != _dump(identity) or not valid:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return tensors


def _code(tensors: Mapping[str, Tensor], path: Path, key: bytes) -> str:
    """The code of an entry: of its tensors and its name, which stands for its identity."""
    return code_of(key, "tensors", path.name, tensors_digest(sorted(tensors.items())))


def _is_there(path: Path) -> bool:
    """Whether there is anything at a path, a link to nothing included. Raises OSError where no file can be there."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _key_name() -> str:
    try:
        return str(key_file())
    except RuntimeError:
        return "of a user without a home"


def _remove(entry: CacheEntry) -> int:
    """Remove an entry and its locks; gives the bytes that were freed: 0 where that is not allowed."""
    try:
        entry.path.unlink(missing_ok=True)
        for lock in entry.path.parent.glob(f"{entry.path.stem}*.lock"):
            lock.unlink(missing_ok=True)
    except OSError:
        return 0
    return entry.size
