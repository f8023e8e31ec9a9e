"""The criteria by name. A new one is a file beside this one, and a line in the table."""

from __future__ import annotations

from amc.errors import ConfigError, did_you_mean
from amc.importance import activations, chance, damage, fpgm, magnitude, obs, slimming, snip, synflow, taylor
from amc.importance.criterion import Criterion, Need
from amc.runtime.plugins import is_plugin, load_plugin

_TABLE: tuple[Criterion, ...] = (
    obs.CRITERION,
    *magnitude.CRITERIA,
    fpgm.CRITERION,
    chance.CRITERION,
    slimming.CRITERION,
    *activations.CRITERIA,
    *taylor.CRITERIA,
    *damage.CRITERIA,
    snip.CRITERION,
    synflow.CRITERION,
)

CRITERIA: dict[str, Criterion] = {criterion.name: criterion for criterion in _TABLE}
"""All criteria by name, the default first."""


def criteria() -> dict[str, Criterion]:
    """All criteria by name.

    >>> criteria()["l1"].summary
    'absolute weights that read a channel'
    """
    return dict(CRITERIA)


def load_criterion(name: str) -> Criterion:
    """A criterion by name, or what ``file.py:object`` names: a `Criterion`, or a function of a `SiteView`.

    A function gives the site's channels, the most important first, and is shown readers and their moments.
    Raises ConfigError.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    if not is_plugin(name):
        raise ConfigError(f"unknown criterion '{name}'.{did_you_mean(name, [*CRITERIA, 'file.py:function'])}")
    found = load_plugin(name)
    if isinstance(found, Criterion):
        return found
    return Criterion(name, "a function of the user's own", "", found, frozenset({Need.READERS, Need.MOMENTS}), "order")
