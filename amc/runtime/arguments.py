"""Arguments of the public functions: of another type than said they are refused in one line."""

from __future__ import annotations

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
    if isinstance(value, PATH) and "\0" in os.fsdecode(value):
        raise ConfigError(f"{name} is {shown(os.fsdecode(value))}, but this can be no path.")
