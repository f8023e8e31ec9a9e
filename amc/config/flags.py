"""The settings as the command line offers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from amc.config.messages import bounds, choices, one_line
from amc.config.settings import Config
from amc.errors import ConfigError


@dataclass(frozen=True)
class Option:
    """One setting as the command line shows it."""

    path: tuple[str, ...]
    """``("search", "evaluations")``."""
    flag: str
    help: str
    """With its bounds. Argparse formats it, so a percent sign stands there twice."""
    default: Any
    kind: type
    """bool, int, float, str, tuple or dict."""
    choices: tuple[str, ...]
    """All that it may be; empty where it may be other things too."""
    section: type[BaseModel]
    """The model that the setting is a field of."""


def options(cls: type[BaseModel] = Config, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every setting, in the order of the tree.

    >>> next(option.help for option in options() if option.flag == "--batch-size")
    'images per step, at least 2'
    """
    for name, field in cls.model_fields.items():
        inner, where = field.annotation, (*path, name)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from options(inner, where)
            continue
        only = choices(field) if get_origin(inner) is Literal else ()
        extra: Any = field.json_schema_extra
        yield Option(where, str(extra["flag"]), _help(field), field.default, _kind(inner), only, cls)


def checked(option: Option, value: Any) -> Any:
    """A value of the command line as its setting has it. Raises ConfigError, which names the option."""
    name = option.path[-1]
    try:
        return getattr(option.section.model_validate({name: value}), name)
    except ValidationError as error:
        raise ConfigError(one_line(error, option.section, option.flag)) from None


def _kind(annotation: Any) -> type:
    """What the values of a type are, apart from None and words."""
    origin = get_origin(annotation)
    if origin in (tuple, dict):
        return tuple if origin is tuple else dict
    if origin is Literal:
        return str
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    parts = [part for part in get_args(annotation) if part is not type(None) and get_origin(part) is not Literal]
    return _kind(parts[0]) if parts else annotation


def _help(field: FieldInfo) -> str:
    """The text with the bounds before the default, which is in brackets at its end."""
    head, bracket, default = str(field.description).partition(" [")
    told = bounds(field, MOST)
    return f"{head}, {told}{bracket}{default}" if told else str(field.description)


MOST = 1000
"""Bounds beyond it only keep nonsense out: the help does not tell them."""
