"""Arguments of the public functions: of another type than said they are refused in one line."""

from __future__ import annotations

import errno
import os
from typing import Any

from amc.config import shown
from amc.errors import ConfigError

PATH = (str, os.PathLike)


def expect(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str, optional: bool = False) -> None:
    """Raise ConfigError unless an argument is of one of the ``kinds``, ``wanted`` in words, or None if ``optional``.

    >>> expect("folder", 5, PATH, "a path")
    Traceback (most recent call last):
    amc.errors.ConfigError: folder is 5, but must be a path.
    """
    if optional and value is None:
        return
    if not isinstance(value, kinds) or isinstance(value, type):
        shown_value = (
            shown(value) if isinstance(value, str | int | float | list | tuple | dict) else type(value).__name__
        )
        raise ConfigError(f"{name} is {shown_value}, but must be {wanted}.")
    if isinstance(value, PATH) and not _can_be_path(value):
        raise ConfigError(f"{name} is {shown(os.fsdecode(value))}, but this can be no path.")


def _can_be_path(value: str | os.PathLike[str]) -> bool:
    """Whether the system could have a file of that name."""
    try:
        os.lstat(value)
    except ValueError:  # a NUL character, half of a surrogate
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True
