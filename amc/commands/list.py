"""`amc list`, and `amc searchers`, as it was called before."""

from __future__ import annotations

import argparse
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from amc.commands.command import Answer, Command
from amc.config import shown
from amc.errors import ConfigError, RenamedWarning, did_you_mean, printable

KINDS = {
    "searchers": "amc.search:searchers",
    "criteria": "amc.importance:criteria",
    "rewards": "amc.evaluation.reward:rewards",
    "data": "amc.task.data:data_sources",
    "schedules": "amc.train:schedules",
    "recoveries": "amc.train:recoveries",
    "preparations": "amc.train:preparations",
    "sparse-rules": "amc.train:sparse_rules",
    "operators": "amc.operators.registry:operators",
    "latency-models": "amc.latency.load:latency_models",
    "onnx-operators": "amc.onnx_import:operator_table",
}
"""Where the entries of every kind are listed. Each has a name, a summary, and perhaps a reference and settings."""


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="KIND", nargs="?", help=", ".join(KINDS))


@dataclass(frozen=True)
class ListAnswer(Answer):
    """What can be chosen by name, of one kind."""

    entries: Mapping[str, Any]
    settings: bool = True
    """Whether the settings are shown."""

    def show(self) -> None:
        wide = max((len(name) for name in self.entries), default=0)
        for name, entry in self.entries.items():
            shown_name = name
            for line in _lines(entry, self.settings):
                print(f"{printable(shown_name):<{wide}}  {line}")
                shown_name = ""  # it stands before the first line only

    def document(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "summary": _summary(entry),
                "reference": getattr(entry, "reference", ""),
                "settings": [{"name": s.name, "default": s.default, "help": s.help} for s in _settings(entry)],
            }
            for name, entry in self.entries.items()
        ]


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    return None


def _list(parsed: argparse.Namespace) -> ListAnswer:
    if parsed.what is None:
        raise ConfigError(f"name what to list: {', '.join(KINDS)}.")
    if parsed.what not in KINDS:
        raise ConfigError(f"unknown kind {shown(parsed.what)}.{did_you_mean(parsed.what, KINDS)}")
    return ListAnswer(_entries(parsed.what))


def _entries(kind: str) -> Mapping[str, Any]:
    module, _, function = KINDS[kind].partition(":")
    found: Mapping[str, Any] = getattr(import_module(module), function)()
    return found


def _summary(entry: Any) -> str:
    return str(getattr(entry, "summary", "") or (entry.__doc__ or "").partition("\n")[0])


def _settings(entry: Any) -> Sequence[Any]:
    from amc.runtime.registry import Entry, settings_of

    return settings_of(entry.load()) if isinstance(entry, Entry) and entry.has_settings else ()


def _lines(entry: Any, settings: bool) -> Iterator[str]:
    """What is said of an entry: the summary with its reference, and a line for every setting."""
    summary, reference = _summary(entry), getattr(entry, "reference", "")
    yield from textwrap.wrap(printable(f"{summary} [{reference}]" if reference else summary), 100)
    if settings:
        for setting in _settings(entry):
            yield printable(f"  {setting.name}={setting.default}: {setting.help}")


def _searchers(parsed: argparse.Namespace) -> ListAnswer:
    warnings.warn(RenamedWarning("amc searchers is now called amc list searchers"), stacklevel=2)
    return ListAnswer(_entries("searchers"), settings=False)


LIST = Command(
    "list",
    "list what can be chosen by name, with its settings",
    _add_list,
    _list,
    """examples:
  amc list searchers                              all searchers, and what --searcher-option sets
  amc list rewards""",
)

SEARCHERS = Command("searchers", "list the searchers (now: amc list searchers)", _add_nothing, _searchers)
