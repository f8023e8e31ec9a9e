"""Single values: read as the type that a setting has, and shown in error messages."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from amc.errors import ConfigError

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "names with values"}
_LONGEST = 4096
"""Characters of a text; a path is no longer on Linux."""

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict, _repr.maxtuple = 3, 4, 4, 4
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def shown(value: object) -> str:
    """A value as error messages show it: short, on one line, without anything that a terminal would act on.

    >>> shown("0.5"), shown("\\x1b[31m"), shown(list(range(100)))
    ("'0.5'", "'\\\\x1b[31m'", '[0, 1, 2, 3, ...]')
    """
    try:
        return _repr.repr(value)
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def convert(value: Any, wanted: Any, where: str) -> Any:
    """``value`` as the type ``wanted``. Texts are read as numbers where a number is wanted. Raises ConfigError.

    >>> convert("1e3", int, "--evaluations"), convert("0.1,0.2", tuple[float, ...], "--mean")
    (1000, (0.1, 0.2))
    """
    try:
        return read(value, wanted)
    except ValueError as error:
        raise ConfigError(f"{where} is {shown(value)}, but must be {error}.") from None


def read(value: Any, wanted: Any) -> Any:
    """``value`` as the type ``wanted``, else ValueError with what it must be. Bounds and choices are not looked at."""
    origin, inner = get_origin(wanted) or wanted, get_args(wanted)
    if origin is Annotated and LIMIT not in inner:
        return read(value, inner[0])
    return _READERS[origin](value, inner or wanted) if origin in _READERS else value


LIMIT = "a limit"
"""Marks a text that may also be given as a number: ``0.5``, ``20000000``."""


def _one_of(value: Any, inner: tuple[Any, ...]) -> Any:
    if value is None and type(None) in inner:
        return None
    words = [word for part in inner if get_origin(part) is Literal for word in get_args(part)]
    if isinstance(value, str) and value in words:
        return value
    (kind,) = (part for part in inner if part is not type(None) and get_origin(part) is not Literal)
    try:
        return read(value, kind)
    except ValueError as error:
        raise ValueError(" or ".join([str(error), *words])) from None


def _many(value: Any, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) > _LONGEST:
        raise ValueError(f"{'texts' if inner[0] is str else 'numbers'} with commas between them")
    return tuple(read(part, inner[0]) for part in parts)


def _word(value: Any, words: tuple[Any, ...]) -> str:
    if isinstance(value, bool) and {"on", "off"} <= set(words):  # as YAML 1.1 reads these two
        return "on" if value else "off"
    return _text(value)


def _flag(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(_NAMES[bool])
    return value


def _mapping(value: Any, _: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(_NAMES[dict])
    return dict(value)


def _text(value: Any, _: Any = None) -> str:
    if not isinstance(value, str):
        raise ValueError(_NAMES[str])
    if not value or "\0" in value or len(value) > _LONGEST:
        raise ValueError(f"{_NAMES[str]} of 1 to {_LONGEST} characters, none of them NUL")
    return value


def _limit(value: Any, _: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a share or an amount")
    if isinstance(value, int) and abs(value) > 1 << 200:
        raise ValueError("a smaller number")
    return _text(str(value))


def _number(value: Any, wanted: type) -> float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            if wanted is int and isinstance(value, int):
                return value
            number = float(value)
            if math.isfinite(number) and (wanted is float or number == int(number)):
                return number if wanted is float else int(number)
        except (ValueError, OverflowError):
            pass
    raise ValueError(_NAMES[wanted])


_READERS: dict[Any, Callable[[Any, Any], Any]] = {
    Annotated: _limit, Union: _one_of, types.UnionType: _one_of, tuple: _many, Literal: _word, bool: _flag,
    dict: _mapping, str: _text, int: _number, float: _number,
}  # fmt: skip
