"""Settings that had another name or another value in an earlier version: one table for YAML, command line and Python.

What is old is still accepted for one version, with one line of warning (`RenamedWarning`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from amc.errors import RenamedWarning


@dataclass(frozen=True)
class Renamed:
    """One setting and what it was called, or which of its values were written otherwise."""

    key: str
    """Its path today: ``search.min_keep``."""
    old_key: str = ""
    """Its path before, where that was another."""
    old_flag: str = ""
    """The option on the command line before."""
    values: tuple[tuple[Any, Any], ...] = ()
    """Pairs of an old value and what it is now."""

    def now(self, value: Any) -> Any:
        """The value as it is written today."""
        return next((new for old, new in self.values if _same(old, value)), value)

    def before(self, value: Any) -> Any:
        """The value as it was written in version 0.1."""
        return next((old for old, new in self.values if new == value), value)


RENAMED = (
    Renamed("search.min_keep", values=((-1.0, "auto"),)),
    Renamed("search.channel_step", values=((0, "auto"),)),
    Renamed("search.sequential_reconstruction", "search.drift", "--drift"),
    Renamed("search.objective", "search.judge", "--judge", (("distance", "logit_mse"),)),
    Renamed("finetune.epochs", values=((-1.0, "auto"),)),
    Renamed("threads", values=((0, "auto"),)),
    Renamed("memory_limit", values=((0.0, "auto"),)),
)


def current(values: Mapping[str, Any], where: str = "", quiet: bool = False) -> dict[str, Any]:
    """Nested ``values`` with today's names; one warning for every old one, unless ``quiet``.

    ``where`` is the section that the values are of (``"search"``), empty for the whole tree. Of a name that is there
    in both forms the new one counts.

    >>> current({"search": {"min_keep": -1}}, quiet=True)
    {'search': {'min_keep': 'auto'}}
    """
    found = _copied(values)
    prefix = f"{where}." if where else ""
    for change in RENAMED:
        old, new = (key.removeprefix(prefix).split(".") for key in (change.old_key or change.key, change.key))
        if not (change.old_key or change.key).startswith(prefix):
            continue
        holder = _section(found, old)
        if holder is None or old[-1] not in holder:
            continue
        value = holder[old[-1]]
        now = change.now(value)
        if old != new:
            del holder[old[-1]]
            _note(f"{change.old_key} is now called {change.key}", quiet)
        elif now is value:
            continue
        else:
            _note(f"{change.key}: {value} is now written {now}", quiet)
        target = _section(found, new, make=True)
        if target is not None:
            target[new[-1]] = now if old == new else target.get(new[-1], now)
    return found


def as_first_written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of today as version 0.1 wrote them: a run's identity is computed from these."""
    found = _copied(values)
    for change in RENAMED:
        old, new = (change.old_key or change.key).split("."), change.key.split(".")
        holder = _section(found, new)
        if holder is not None and new[-1] in holder:
            value = holder.pop(new[-1]) if old != new else holder[new[-1]]
            target = _section(found, old, make=True)
            assert target is not None
            target[old[-1]] = change.before(value)
    return found


def renamed_flags() -> Iterator[tuple[str, str]]:
    """Options of the command line that are called otherwise now: the old flag, and the old path of its setting."""
    for change in RENAMED:
        if change.old_flag:
            yield change.old_flag, change.old_key or change.key


def _note(text: str, quiet: bool) -> None:
    if not quiet:
        warnings.warn(RenamedWarning(f"{text}; the old form is accepted in this version only."), stacklevel=2)


def _same(old: Any, value: Any) -> bool:
    """Whether a value, a text of the command line included, is the old one."""
    if not isinstance(value, int | float | str | None):  # what compares with anything in a way of its own
        return False
    if isinstance(old, str) or isinstance(value, bool | None):
        return bool(old == value)
    try:
        return bool(float(value) == old)
    except (ValueError, OverflowError):
        return False


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _section(values: dict[str, Any], path: list[str], make: bool = False) -> dict[str, Any] | None:
    """What holds the last part of a path; None where there is no such mapping."""
    here: dict[str, Any] = values
    for part in path[:-1]:
        inner = here.setdefault(part, {}) if make else here.get(part)
        if not isinstance(inner, dict):
            return None
        here = inner
    return here


FIRST = frozenset((
    "model.name", "model.weights", "data.name", "data.root", "data.download", "data.image_size", "data.mean",
    "data.std", "data.calibration", "data.search", "data.seed", "budget.flops", "budget.params", "budget.size",
    "budget.memory", "budget.latency", "budget.branches", "search.searcher", "search.evaluations", "search.storage",
    "search.study_name", "search.criterion", "search.reward", "search.latency_model", "search.latency_timeout",
    "search.min_keep", "search.channel_step", "search.reconstruct", "search.drift", "search.judge", "search.race",
    "search.refine", "search.recalibrate", "finetune.epochs", "finetune.lr", "finetune.batch_size",
    "finetune.weight_decay", "finetune.distillation", "finetune.temperature", "finetune.candidates",
    "finetune.trial_share", "finetune.precision", "objective", "seed", "device", "threads", "int8",
    "latency_threads", "cache", "log", "memory_limit", "profile_seconds", "out",
))  # fmt: skip
"""The settings of version 0.1, by their names of then."""
