"""The criteria by name. A new one is a file beside this one, and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor

from amc.importance import activations, attention, chance, damage, fpgm, magnitude, obs, slimming, snip, synflow, taylor
from amc.importance.criterion import Criterion, Need
from amc.importance.group import SiteView
from amc.importance.saved import PREFIX, ranking_digest, saved_criterion
from amc.importance.searched import SEARCH, compared, is_search, searched_criterion
from amc.runtime.plugins import file_digests
from amc.runtime.registry import Entry, Registry

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
    attention.CRITERION,
)

CRITERIA: dict[str, Criterion] = {criterion.name: criterion for criterion in _TABLE}
"""The built-in criteria by name, the default first."""


_REGISTRY: Registry[Criterion] = Registry(
    "criterion",
    "amc.criteria",
    [
        *[
            Entry(c.name, c.summary, reference=c.reference, loader=partial(CRITERIA.__getitem__, c.name))
            for c in _TABLE
        ],
        Entry(SEARCH, "at every site the criterion with the least estimated error (search:obs,l1: of these)"),
    ],
    ["ranking:FILE", "search:NAME,NAME"],
)


def criteria() -> dict[str, Entry[Criterion]]:
    """The entries of all criteria by name: amc's own, then those of installed packages (group ``amc.criteria``).

    >>> criteria()["l1"].summary
    'absolute weights that read a channel'
    """
    return _REGISTRY.entries()


def load_criterion(name: str) -> Criterion:
    """A criterion by name, ``ranking:FILE``, ``search``, or what ``file.py:object`` names: it, or a function.

    A function takes a `SiteView`, with readers and their moments, and gives the site's channels, the most important
    first. Raises ConfigError.

    >>> load_criterion("obs").gives
    'order'
    """
    if name.startswith(PREFIX):
        return saved_criterion(name)
    if is_search(name):
        return searched_criterion(name, load_criterion)
    found: object = _REGISTRY.load(name)
    if isinstance(found, Criterion):
        return found
    function = cast(Callable[[SiteView], Tensor], found)
    return Criterion(name, "of your own", "", function, frozenset({Need.READERS, Need.MOMENTS}), "order")


def criterion_files(name: str) -> dict[str, str]:
    """SHA-256 of the files that a criterion is made of: what one version of them ranks is not the other's."""
    if is_search(name):
        return {key: value for part in compared(name) for key, value in criterion_files(part).items()}
    return {**file_digests([name]), **ranking_digest(name)}
