"""A secret of the user's own, by which amc recognises what it has written itself.

The key is 32 random bytes in a file that only the user can read: ``$AMC_KEY``, or ``amc/key`` in the system's folder
for configurations. A message authentication code (HMAC-SHA-256, RFC 2104) under it cannot be made by anyone else, so a
cache entry or a run's folder that carries a valid one was written by this user, on a machine with this key.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from amc.runtime.files import opened

_BYTES = 32


def key_file() -> Path:
    """Where the user's key is. Raises RuntimeError for a user without a home."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return Path(os.environ.get("AMC_KEY") or (Path(base) if base else Path.home() / ".config") / "amc" / "key")


def user_key() -> bytes | None:
    """The user's key, made when it is first asked for. None where there is none and none can be made.

    Processes that make it at the same time get the same one. A key that others may have read, or that is damaged, is
    replaced.
    """
    try:
        path = key_file()
        return _read(path) or _made(path)
    except (OSError, RuntimeError):
        return None


def code_of(key: bytes, *parts: str | bytes) -> str:
    """The message authentication code of a text in parts, 64 hex digits. No part can be taken for two, or two for one.

    >>> code_of(b"key", "ab", "c") == code_of(b"key", "a", "bc")
    False
    """
    code = hmac.new(key, digestmod="sha256")
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        code.update(len(content).to_bytes(8, "big") + content)
    return code.hexdigest()


def _read(path: Path) -> bytes | None:
    """The key in a file; None where it is not there, no key, or not the user's alone."""
    try:
        with os.fdopen(opened(path, own=True), "rb") as file:
            status = os.fstat(file.fileno())
            alone = not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o077)
            key = file.read(_BYTES + 1)
    except OSError:
        return None
    return key if alone and len(key) == _BYTES else None


def _made(path: Path) -> bytes | None:
    """The key in a new file. The first of several processes makes it, and the others find it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".tmp", ".key.", path.parent)  # for the user alone: 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        found = _read(path)
        if found is None:  # what is there is no key
            temporary.replace(path)
            found = _read(path)
    finally:
        temporary.unlink(missing_ok=True)
    return found
