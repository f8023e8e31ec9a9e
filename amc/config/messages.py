"""What is wrong with settings, in one line: the place, the value and the rule."""

from __future__ import annotations

import math
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from amc.config.values import shown
from amc.errors import did_you_mean


def one_line(error: ValidationError, cls: type[BaseModel], named: str = "") -> str:
    """The first of the errors. ``named`` is what the user calls the place, where that is not its path in the tree."""
    first = error.errors(include_url=False)[0]
    path, field = _place(cls, first["loc"])
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown_key(cls, first["loc"])
    if first["type"] == "missing":
        return f"{'.'.join(str(part) for part in first['loc'])} is not given, and has no default."
    where, value = named or ".".join(path) or "the configuration", shown(first["input"])
    if first["type"] == "literal_error" and field is not None:
        return f"{where} is {value}.{did_you_mean(str(first['input']), choices(field))}"
    reason = first.get("ctx", {}).get("error")
    if reason is not None:
        return f"{where} is {value}, but must be {reason}."
    if field is not None and bounds(field):
        return f"{where} is {value}, but must be {bounds(field)}{', or auto' * ('auto' in choices(field))}."
    return f"{where} is {value}, but must hold keys and values."


_WORDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def bounds(field: FieldInfo, most: float = math.inf) -> str:
    """Between which numbers a setting lies, in words. Bounds beyond ``most`` are left out."""
    found = [(text, getattr(part, name)) for part in _metadata(field)
             for kind, name, text in _WORDS if isinstance(part, kind)]  # fmt: skip
    return " and ".join(f"{text} {number}" for text, number in found if abs(number) <= most)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words that a setting may be."""
    return tuple(word for part in _parts(field.annotation) for word in get_args(part) if isinstance(word, str))


def _parts(annotation: Any) -> list[Any]:
    inner = [part for part in get_args(annotation) if part is not type(None)]
    return [annotation, *(found for part in inner for found in _parts(part) if not isinstance(part, str))]


def _metadata(field: FieldInfo) -> list[Any]:
    inner = [part for found in _parts(field.annotation) for part in getattr(found, "__metadata__", ())]
    return [bound for part in [*field.metadata, *inner] for bound in getattr(part, "metadata", None) or [part]]


def _unknown_key(cls: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in loc if part != "[key]"]
    path, field = _place(cls, loc)
    section = field.annotation if field is not None else cls
    known = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else ()
    return f"unknown key {shown('.'.join([*path, parts[-1]]))}.{did_you_mean(parts[-1], known)}"


def _place(cls: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[list[str], FieldInfo | None]:
    """The names on the way to an error, and the field that it is about."""
    path: list[str] = []
    field, here = None, cls
    for part in loc:
        if not isinstance(part, str) or part not in here.model_fields:
            break
        field = here.model_fields[part]
        path.append(part)
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        here = inner
    return path, field
