"""Options on the command line that come from the configuration, and what was given of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from amc.config import (
    Config,
    Option,
    checked,
    convert,
    current,
    from_dict,
    merge,
    options,
    read_yaml,
    renamed_flags,
    shown,
)
from amc.errors import ConfigError, RenamedWarning

_GROUPS = {
    "model": "the network",
    "data": "the data",
    "budget": "the budget (at least one limit; all that are given must hold)",
    "search": "the search",
    "finetune": "fine-tuning",
    "train": "preparing for pruning",
    "": "the run",
}


def add_options(
    parser: argparse.ArgumentParser,
    leave_out: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Every option of the configuration, but those of the sections to leave out. Gives the group of the run's.

    ``unused``: paths of settings that the command has no use for. Their options are hidden, and accepted in this
    version still, with a warning.
    """
    groups: dict[str, Any] = {}
    for option in options():
        top = option.path[0] if len(option.path) > 1 else ""
        if top in leave_out:
            continue
        group = groups.setdefault(top, parser.add_argument_group(texts.get(_GROUPS[top], _GROUPS[top])))
        _add_option(group, option, ".".join(option.path) in unused, texts.get(option.flag))
    run = groups.setdefault("", parser.add_argument_group(_GROUPS[""]))
    run.add_argument("--config", metavar="FILE.yaml",
                     help="read the configuration from a file; options given here override it")  # fmt: skip
    run.add_argument("--trust", action="store_true",
                     help="run the Python files and commands that --config or --resume names")  # fmt: skip
    for flag, path in renamed_flags():
        if path.partition(".")[0] not in leave_out:
            parser.add_argument(flag, dest=path, default=None, help=argparse.SUPPRESS)
    parser.set_defaults(unused=unused)
    return run


def _add_option(group: Any, option: Option, hidden: bool, text: str | None) -> None:
    shown_default = {True: "on", False: "off"}[option.default] if option.kind is bool else option.default
    default = "" if shown_default in (None, {}) or "[" in option.help else f" [{shown_default}]"
    help_text = argparse.SUPPRESS if hidden else text or option.help + default
    common = {"dest": ".".join(option.path), "default": None, "help": help_text}
    if option.kind is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
    elif option.kind is dict:
        group.add_argument(option.flag, metavar="NAME=VALUE", action="append", **common)
    else:
        kind = {int: "N", float: "X"}.get(option.kind, option.flag.rpartition("-")[2].upper())
        group.add_argument(option.flag, metavar="|".join(option.choices) or kind, **common)


def configuration(parsed: argparse.Namespace, given: dict[str, Any] | None = None) -> Config:
    """The file's configuration with the command line's over it: ``given`` where a command has defaults of its own.

    Code that a file names, and the command line does not, is run with --trust only. Raises AmcError.
    """
    given = given_values(parsed) if given is None else given
    if not parsed.config:
        return from_dict(given)
    config = from_dict(merge(current(read_yaml(parsed.config)), given))
    if not parsed.trust:
        from amc.pipeline.trust import code_named, refuse_plugins

        refuse_plugins(config, Path(parsed.config), code_named(from_dict(given)))
    return config


def given_values(parsed: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line, with today's names, nested. Raises ConfigError, which names the option."""
    words: dict[str, Any] = {}
    flags = {".".join(option.path): option.flag for option in options()}
    for path in [*flags, *(path for _, path in renamed_flags())]:
        value = getattr(parsed, path, None)
        if isinstance(value, list):
            value = dict(_pair(text, flags[path]) for text in value)
        if value is not None:
            _put(words, path.split("."), value)
    words = current(words)
    given: dict[str, Any] = {}
    for option in options():
        value = words
        for part in option.path:
            value = value.get(part, {})
        if value != {}:
            _put(given, option.path, checked(option, value))
            if ".".join(option.path) in parsed.unused:
                _warn_unused(option.flag, parsed.command)
    return given


def _warn_unused(flag: str, command: str) -> None:
    text = f"{flag} has no effect in amc {command}, and is accepted in this version only."
    warnings.warn(RenamedWarning(text), stacklevel=2)


_EXAMPLES = {"--searcher-option": "population=32", "--schedule-option": "steps=3", "--recover-option": "share=0.5",
             "--sparsify-option": "strength=0.001", "--sparse-option": "changes=50"}  # fmt: skip


def _pair(text: str, flag: str) -> tuple[str, Any]:
    """Name and value of ``name=value``; what looks like a number or true or false is one, as in YAML."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"{flag} is {shown(text)}, but must be like {_EXAMPLES.get(flag, 'name=1')}.")
    for kind in (int, float):
        with contextlib.suppress(ConfigError):
            return name, convert(value, kind, name)
    return name, {"true": True, "false": False}.get(value, value)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def whole(value: str, flag: str, least: int, most: int = 4096) -> int:
    """A whole number, at least ``least`` and at most ``most``. Raises ConfigError."""
    number = convert(value, int, flag)
    if not least <= number <= most:
        raise ConfigError(f"{flag} is {shown(number)}, but must be at least {least} and at most {most}.")
    return int(number)


def positive(value: str, flag: str, most: float) -> float:
    """A number above 0, at most ``most``. Raises ConfigError."""
    number = convert(value, float, flag)
    if not 0 < number <= most:
        raise ConfigError(f"{flag} is {number:g}, but must be above 0 and at most {most:g}.")
    return float(number)


def amount(value: str, flag: str) -> int:
    """Bytes, or a share of what the machine has."""
    from amc.space.budget import parse_limit

    return int(parse_limit(flag.removeprefix("--"), value, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
