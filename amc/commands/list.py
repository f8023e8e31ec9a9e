"""`amc list`, and `amc searchers`, as it was called before."""

from __future__ import annotations

import argparse
import textwrap
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from amc.commands.command import Command
from amc.config import shown
from amc.errors import ConfigError, RenamedWarning, did_you_mean, printable

KINDS = {
    "searchers": "amc.search:searchers",
    "criteria": "amc.importance:criteria",
    "rewards": "amc.evaluation.reward:rewards",
    "data": "amc.task.data:data_sources",
    "schedules": "amc.train:schedules",
    "recoveries": "amc.train:recoveries",
    "operators": "amc.operators.registry:operators",
    "latency-models": "amc.latency.load:latency_models",
}
"""Where the entries of every kind are listed. Each has a name, a summary, and perhaps a reference and settings."""


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="KIND", help=", ".join(KINDS))


def _list(parsed: argparse.Namespace) -> int:
    if parsed.what not in KINDS:
        raise ConfigError(f"unknown kind {shown(parsed.what)}.{did_you_mean(parsed.what, KINDS)}")
    return _print(parsed.what, settings=True)


def _print(kind: str, settings: bool) -> int:
    module, _, function = KINDS[kind].partition(":")
    entries = getattr(import_module(module), function)()
    wide = max((len(name) for name in entries), default=0)
    for name, entry in entries.items():
        for line in _lines(entry, settings):
            print(f"{printable(name):<{wide}}  {line}")
            name = ""  # noqa: PLW2901  (it stands before the first line only)
    return 0


def _lines(entry: Any, settings: bool) -> Iterator[str]:
    """What is said of an entry: the summary with its reference, and a line for every setting."""
    from amc.runtime.registry import Entry, settings_of

    summary = getattr(entry, "summary", "") or (entry.__doc__ or "").partition("\n")[0]
    reference = getattr(entry, "reference", "")
    yield from textwrap.wrap(printable(f"{summary} [{reference}]" if reference else summary), 100)
    if settings and isinstance(entry, Entry) and entry.has_settings:
        for setting in settings_of(entry.load()):
            yield printable(f"  {setting.name}={setting.default}: {setting.help}")


def _searchers(parsed: argparse.Namespace) -> int:
    warnings.warn(RenamedWarning("amc searchers is now called amc list searchers"), stacklevel=2)
    return _print("searchers", settings=False)


LIST = Command(
    "list",
    "list what can be chosen by name, with its settings",
    _add_list,
    _list,
    """examples:
  amc list searchers                              all searchers, and what --searcher-option sets
  amc list rewards""",
)

SEARCHERS = Command("searchers", "list the searchers (now: amc list searchers)", lambda parser: None, _searchers)
