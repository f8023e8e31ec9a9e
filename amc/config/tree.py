"""The whole tree of settings from and to plain values, and what of it makes a run's identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from amc.config.messages import one_line
from amc.config.renamed import FIRST, as_first_written, current
from amc.config.secrets import public
from amc.config.settings import Config
from amc.config.values import shown
from amc.errors import ConfigError


def from_dict(values: Mapping[str, Any], quiet: bool = False) -> Config:
    """A configuration from nested mappings, as YAML gives them. Unknown keys and wrong values raise ConfigError.

    ``quiet``: without warnings about what is called otherwise now.

    >>> from_dict({"search": {"evaluations": "1e3"}}).search.evaluations
    1000
    >>> from_dict({"search": {"evaluation": 3}})
    Traceback (most recent call last):
    amc.errors.ConfigError: unknown key 'search.evaluation'. Did you mean 'evaluations'?
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"the configuration is {shown(values)}, but must hold keys and values.")
    try:
        return Config.model_validate(current(values, quiet=quiet))
    except ValidationError as error:
        raise ConfigError(one_line(error, Config)) from None


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values (tuples as lists), ready for YAML and JSON."""
    return {name: _plain(value) for name, value in config.model_dump().items()}


_FREE = ("out", "cache", "log", "threads", "memory_limit")


def binding(config: Config, mask: bool = True) -> dict[str, Any]:
    """What of a configuration may not change while a run goes on: all but its place and its share of a machine.

    It is written as version 0.1 wrote it, so that runs begun with that version can be resumed: with the names of
    then, and of settings that came later only those that are not at their default. Passwords are masked; version 0.1
    did not do so (``mask``).
    """
    values = public(to_dict(config)) if mask else to_dict(config)
    defaults = as_first_written(to_dict(Config()))
    found: dict[str, Any] = {}
    for name, value in as_first_written(values).items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            found[name] = {key: v for key, v in value.items()
                           if f"{name}.{key}" in FIRST or v != defaults[name].get(key)}  # fmt: skip
        elif name not in _FREE and (name in FIRST or value != defaults.get(name)):
            found[name] = value
    return {name: value for name, value in found.items() if value != {}}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
