"""The command line that gives a configuration."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amc.config.flags import Option, options
from amc.config.settings import Config
from amc.config.tree import from_dict, to_dict


def command_line(values: Mapping[str, Any], command: str = "search") -> str:
    """The command whose options give a configuration, as a line for a shell; settings at their defaults are left out.

    ``values``: the configuration as plain values (`to_dict`), with passwords masked (`public`).

    >>> command_line({"budget": {"flops": "0.5"}, "model": {"name": "my net.py:make"}, "int8": True})
    "amc search --model 'my net.py:make' --flops 0.5 --int8"
    """
    recipe = _value(_RECIPE, values) or Config().finetune.recipe
    usual = to_dict(from_dict({"finetune": {"recipe": recipe}}))  # a recipe has its own defaults
    words: list[str] = []
    for option in options():
        value, default = _value(option.path, values), _value(option.path, usual)
        if value is not None and _plain(value) != _plain(option.default if option.path == _RECIPE else default):
            words += _words(option, value)
    return shlex.join(["amc", command, *words])


_RECIPE = ("finetune", "recipe")


def _value(path: Sequence[str], values: Mapping[str, Any]) -> Any:
    """A setting's value; None if it is not there."""
    found: Any = values
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _words(option: Option, value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield option.flag if value else f"--no-{option.flag.removeprefix('--')}"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield option.flag
            yield f"{name}={_text(inner)}"
    else:
        text = ",".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)
        yield from [f"{option.flag}={text}"] if text.startswith("-") else [option.flag, text]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
