"""Latency models by name: a profile, a table, a command, a Python file or an installed package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from amc.errors import ConfigError, first_line
from amc.latency.command import COMMAND, CommandModel
from amc.latency.lookup import TableModel
from amc.latency.model import LatencyModel
from amc.runtime.files import read_json
from amc.runtime.plugins import is_plugin
from amc.runtime.registry import Entry, Registry

LATENCY_MODELS: Registry[Callable[[], Any]] = Registry(
    "latency model", "amc.latency_models", (), ("table.csv", "command:./measure.sh {onnx}")
)
TABLES = (".csv", ".json")
"""Suffixes of table files."""


def latency_models() -> dict[str, Entry[Callable[[], Any]]]:
    """The latency models of installed packages, by name."""
    return LATENCY_MODELS.entries()


def runs_code(name: str) -> bool:
    """Whether the latency model ``name`` runs a Python file or a command of the user.

    >>> runs_code("command:./measure.sh {onnx}"), runs_code("table.csv")
    (True, False)
    """
    return is_plugin(name) or name.startswith(COMMAND)


def load_latency_model(name: str) -> LatencyModel:
    """Load a latency model by name: an installed entry point, ``file.py:Class``, a table file, or ``command:...``."""
    if name.startswith(COMMAND):
        return CommandModel(name.removeprefix(COMMAND))
    if name.lower().endswith(TABLES):
        return TableModel(Path(name))
    return _made(LATENCY_MODELS.load(name), name)


def _made(factory: Callable[[], Any], name: str) -> LatencyModel:
    try:
        model: LatencyModel = factory()
    except Exception as error:
        raise ConfigError(f"the latency model {name} fails: {type(error).__name__}: {first_line(error)}") from error
    return model


def is_profile(name: str) -> bool:
    """Whether ``name`` is a file written by ``amc profile``."""
    try:
        return name.endswith(".json") and read_json(Path(name))["format"] == "amc-profile"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
