"""A batch file: a matrix of runs, with excludes and overrides. docs/batch.md describes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc.config import BudgetConfig, Config, convert, from_dict, merge, read_yaml, shown
from amc.errors import AmcError, ConfigError, did_you_mean

AXES = {"models": "model", "data": "data", "budgets": "budget", "devices": "device", "searchers": "searcher",
        "seeds": "seed"}  # fmt: skip
_KEYS = (*AXES, "common", "exclude", "overrides", "out", "retries")
_LIMITS = set(BudgetConfig.model_fields)
LONGEST_NAME, LONGEST_FOLDER = 100, 200
"""Most characters of an entry's name, and of a run's name, which is also that of its folder."""
MOST_RETRIES = 1000
MOST_OF_A_RESOURCE = 1e15
MANY_BUDGETS = 3
"""Number of budgets from which a common search (`amc.search.transfer`) is suggested if no searcher is named."""
_LATENCY = ("latency_model", "latency_timeout")
_TOP = set(Config.model_fields) - {"model", "data", "budget", "search", "seed", "out"}


@dataclass(frozen=True)
class Job:
    """One run of a batch: its place in the matrix, its configuration and its folder."""

    name: str
    place: Mapping[str, str]
    """Axis → the entry's name: ``{"model": "resnet8", "budget": "half", "seed": "0"}``."""
    config: Config
    folder: Path
    resources: Mapping[str, float] = field(default_factory=dict)
    """Resources that it needs on a cluster's node besides CPUs: ``{"GPU": 1, "phone": 1}``."""


@dataclass(frozen=True)
class Matrix:
    """The content of a batch file. ``axes`` maps every axis to its entries by name."""

    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    common: Mapping[str, Any]
    exclude: Sequence[Mapping[str, str]]
    overrides: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]
    out: Path
    retries: int
    resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Device → resources that its runs need on a cluster's node."""

    @property
    def could_share(self) -> bool:
        """Whether many budgets would be searched separately although the file names no searcher."""
        named = "searcher" in self.axes or "searcher" in (self.common.get("search") or {})
        return len(self.axes.get("budget", ())) >= MANY_BUDGETS and not named

    @property
    def size(self) -> int:
        """Number of runs before exclusion."""
        return math.prod(len(entries) for entries in self.axes.values())

    def jobs(self) -> list[Job]:
        """All runs that are not excluded; the last axis changes fastest. Raises ConfigError with the run's name."""
        found = []
        for names in itertools.product(*self.axes.values()):
            place = dict(zip(self.axes, names, strict=True))
            if any(_matches(rule, place) for rule in self.exclude):
                continue
            name = "--".join(names)
            if len(name) > LONGEST_FOLDER:
                raise ConfigError(f"the run {shown(name)} has a name of more than {LONGEST_FOLDER} characters.")
            try:
                config = from_dict({**self._values(place), "out": str(self.out / name)})
            except AmcError as error:
                raise ConfigError(f"run {name}: {error}") from None
            needs = self.resources.get(place.get("device", ""), {})
            found.append(Job(name, place, config, self.out / name, needs))
        if not found:
            raise ConfigError("nothing is left to run: 'exclude' removes every run.")
        return found

    def _values(self, place: Mapping[str, str]) -> dict[str, Any]:
        values = {"cache": "auto", **self.common}
        for axis, name in place.items():
            entry = self.axes[axis][name]
            double = set(entry.get("budget") or {}) & set(values.get("budget") or {})
            if double:
                word = min(double)
                raise ConfigError(f"both the {axis} '{name}' and another entry limit '{word}': set it in one place.")
            values = merge(values, entry)
        for rule, change in self.overrides:
            if _matches(rule, place):
                values = merge(values, change)
        return values


def _matches(rule: Mapping[str, str], place: Mapping[str, str]) -> bool:
    return all(place[axis] == name for axis, name in rule.items())


def read_matrix(path: str | Path, out: str | None = None) -> Matrix:
    """Read the matrix in a YAML file. Raises ConfigError for invalid content."""
    values = read_yaml(path)
    for key in values:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {shown(str(key))}.{did_you_mean(str(key), _KEYS)}")
    try:
        axes = {word: dict(_entries(axis, values[axis])) for axis, word in AXES.items() if values.get(axis) is not None}
        if not axes:
            raise ConfigError(f"there is no matrix: give at least one of {', '.join(AXES)}.")
        common = _mapping(values.get("common") or {}, "common")
        _whole_settings(common)
        retries = convert(values.get("retries", 1), int, "retries")
        if not 0 <= retries <= MOST_RETRIES:
            raise ConfigError(f"retries is {shown(retries)}, but must be at least 0 and at most {MOST_RETRIES}.")
        folder = convert(values.get("out") or str(Path("amc-runs", Path(path).stem)), str, "out")
        return Matrix(
            axes,
            common,
            [_rule(rule, axes, "exclude") for rule in _list(values.get("exclude"), "exclude")],
            [_override(entry, axes) for entry in _list(values.get("overrides"), "overrides")],
            Path(out or folder),
            retries,
            dict(_resources(values.get("devices"))),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _whole_settings(common: Mapping[str, Any]) -> None:
    """Raise ConfigError for invalid common settings, which the settings of an axis could otherwise hide."""
    try:
        from_dict(common, quiet=True)
    except ConfigError as error:
        raise ConfigError(f"common: {error}") from None


def _entries(axis: str, given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an axis's entries: name and part of a configuration. In a list, a value is also its name."""
    if isinstance(given, Mapping):
        pairs = [(str(name), value) for name, value in given.items()]
    elif isinstance(given, list):
        pairs = [(_named(axis, value), value) for value in given]
    else:
        raise ConfigError(f"{axis} is {shown(given)}, but must be a list or a mapping of names to entries.")
    if not pairs:
        raise ConfigError(f"{axis} is empty: remove it or add an entry.")
    seen: set[str] = set()
    for name, value in pairs:
        if not name or name != _slug(name):
            raise ConfigError(f"{axis}: the name {shown(name)} must consist of letters, digits, '.', '_' and '-'.")
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"{axis}: the name {shown(name)} is longer than {LONGEST_NAME} characters.")
        if name in seen:
            raise ConfigError(f"{axis}: there are two entries with the name '{name}'.")
        seen.add(name)
        yield name, _part(axis, name, value)


def _named(axis: str, value: Any) -> str:
    """The name of a list's entry: the value itself, or for a budget its limits (``flops-0.5``)."""
    if isinstance(value, Mapping):
        if axis != "budgets":
            raise ConfigError(f"{axis}: {shown(value)} has no name: write NAME: {{…}} instead of a list.")
        return "-".join(_slug(f"{key}-{limit}") for key, limit in value.items())
    return _slug(str(value).rpartition("/")[2])


def _slug(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text).strip(".")


def _part(axis: str, name: str, value: Any) -> dict[str, Any]:
    """The part of a configuration that an entry sets."""
    if axis == "seeds":
        return {"seed": name if value is None else value}
    if axis in ("models", "data", "searchers"):
        section, key = {"models": ("model", "name"), "data": ("data", "name"), "searchers": ("search", "searcher")}[
            axis
        ]
        if not isinstance(value, Mapping):
            return {section: {key: name if value is None else value}}
        return {section: {key: name, **value}}
    entry = _mapping(value, f"{axis}.{name}")
    if axis == "budgets":
        return {"budget": entry}
    return _device(name, entry)


def _device(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a device: limits, ``threads`` of ONNX Runtime, a latency model, and other settings of a run."""
    part: dict[str, Any] = {}
    for key, value in entry.items():
        if key in _LIMITS:
            part.setdefault("budget", {})[key] = value
        elif key == "threads":
            part["latency_threads"] = value
        elif key in _LATENCY:
            part.setdefault("search", {})[key] = value
        elif key == "resources":
            continue  # see _resources
        elif key in _TOP:
            part[key] = value
        else:
            known = [*_LIMITS, *_LATENCY, *_TOP, "threads", "resources"]
            raise ConfigError(f"unknown key {shown(f'devices.{name}.{key}')}.{did_you_mean(str(key), known)}")
    return part


def _resources(devices: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield every device and the resources that its runs need on a cluster's node."""
    for name, entry in devices.items() if isinstance(devices, Mapping) else ():
        where = f"devices.{name}.resources"
        needs = _mapping((entry or {}).get("resources") or {}, where)
        yield str(name), {str(key): _amount(value, f"{where}.{key}") for key, value in needs.items()}


def _amount(value: Any, where: str) -> float:
    number = float(convert(value, float, where))
    if not 0 < number <= MOST_OF_A_RESOURCE:
        raise ConfigError(f"{where} is {number:g}, but must be above 0 and at most {MOST_OF_A_RESOURCE:g}.")
    return number


def _override(entry: Any, axes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, Any]]:
    given = _mapping(entry, "overrides")
    if set(given) != {"match", "set"}:
        raise ConfigError(f"an override is {shown(given)}, but must have 'match' and 'set'.")
    return _rule(given["match"], axes, "overrides"), _mapping(given["set"], "overrides.set")


def _rule(rule: Any, axes: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, str]:
    """Parse a rule, axis → name. It matches the runs with all of these names."""
    found = {}
    for axis, name in _mapping(rule, where).items():
        if axis not in axes:
            raise ConfigError(f"unknown key {shown(f'{where}.{axis}')}.{did_you_mean(str(axis), axes)}")
        if str(name) not in axes[axis]:
            raise ConfigError(f"{where}: there is no {axis} {shown(str(name))}.{did_you_mean(str(name), axes[axis])}")
        found[axis] = str(name)
    if not found:
        raise ConfigError(f"{where}: an empty rule would match every run.")
    return found


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {shown(value)}, but must hold keys and values.")
    return dict(value)


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{where} is {shown(value)}, but must be a list.")
    return value
