"""What may be chosen at a site: an ordered list of settings. Above an operator, positions in that list count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Setting: TypeAlias = "int | float | str | tuple[Setting, ...]"
"""What an operator does to one site, as a plain value that JSON can hold. Only the operator knows what it means: for
channels it is how many stay."""

Choice: TypeAlias = tuple[Setting, ...]
"""A policy as searchers pass it on: one setting a site, in the sites' order."""


@dataclass(frozen=True)
class SiteSettings:
    """The settings that one site may have.

    >>> SiteSettings("conv1:bits", ("int4", "int8", "float32"), (4, 8, 32), ("bits",)).original
    'float32'
    """

    name: str
    """Unique within a space."""
    settings: tuple[Setting, ...]
    """All different. The first takes most away and costs least, in every resource; the last leaves the original."""
    sizes: tuple[int, ...]
    """Whole numbers that stand for the settings in arithmetic, ascending: proportions are taken of them, and cost
    models are asked with them. They count equal parts of the site (channels, bits), 0 where nothing is left of it."""
    operators: tuple[str, ...] = ("channels",)
    """The operator that the site belongs to, and those that have added settings to it."""

    def __post_init__(self) -> None:
        """Raise ValueError, a mistake in an operator, where settings and sizes are not as they must be."""
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise ValueError(f"site {self.name!r} needs settings, all different, but has {self.settings}")
        if len(self.sizes) != len(self.settings) or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"site {self.name!r} needs one size a setting, ascending, but has {self.sizes}")
        if self.sizes[0] < 0 or self.sizes[-1] == 0:
            raise ValueError(f"site {self.name!r} needs sizes of 0 at least, the original's above 0: {self.sizes}")

    @property
    def original(self) -> Setting:
        """The setting that leaves the site as it is."""
        return self.settings[-1]

    def only(self, sizes: Sequence[int]) -> SiteSettings:
        """The site with the settings of these sizes alone.

        >>> ranked_site("a", ("x", "y", "z"), "letters").only([1, 3]).settings
        ('x', 'z')
        """
        left = [(setting, size) for setting, size in zip(self.settings, self.sizes, strict=True) if size in sizes]
        return replace(self, settings=tuple(s for s, _ in left), sizes=tuple(size for _, size in left))


def ranked_site(name: str, settings: Sequence[Setting], operator: str) -> SiteSettings:
    """A site whose settings have an order but no size: the sizes are 1, 2, 3, ….

    >>> ranked_site("a", ("shared", "own"), "sharing").sizes
    (1, 2)
    """
    return SiteSettings(name, tuple(settings), tuple(range(1, len(settings) + 1)), (operator,))


def numeric_sites(
    names: Sequence[str], settings: Sequence[Sequence[int]], operator: str = "channels"
) -> tuple[SiteSettings, ...]:
    """Sites whose settings are their own sizes, as the widths of channel groups are.

    >>> numeric_sites(["conv1"], [(8, 16)])[0].sizes
    (8, 16)
    """
    return tuple(
        SiteSettings(name, tuple(sizes), tuple(sizes), (operator,)) for name, sizes in zip(names, settings, strict=True)
    )


def frozen_setting(value: object) -> Setting:
    """A setting as JSON has given it back: lists become tuples. Raises ValueError for anything that is no setting.

    >>> frozen_setting([2, ["a", 0.5]])
    (2, ('a', 0.5))
    """
    if isinstance(value, list | tuple):
        return tuple(frozen_setting(part) for part in value)
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is no setting")


@dataclass(frozen=True, eq=False)
class PolicyGrid:
    """All policies that sites allow: a grid with one axis a site, S in all, whose points are policies.

    Searchers see a policy as positions ``[S]``: position p of site s is its p-th setting, 0 the one that costs least.
    Proportions are of the settings' sizes. What a setting is, only its operator knows.
    """

    sites: tuple[SiteSettings, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def settings(self) -> tuple[tuple[Setting, ...], ...]:
        """For every site its settings, the least costly first; the last is the original's."""
        return tuple(site.settings for site in self.sites)

    @cached_property
    def operators(self) -> frozenset[str]:
        """All operators that have a setting in it."""
        return frozenset(name for site in self.sites for name in site.operators)

    @cached_property
    def smallest(self) -> Choice:
        """Every site cut as far as allowed."""
        return tuple(site.settings[0] for site in self.sites)

    @cached_property
    def full(self) -> Choice:
        """The original network."""
        return tuple(site.original for site in self.sites)

    def positions(self, choice: Sequence[Setting]) -> Ints:
        """The position of every setting of a policy ``[S]``, or of its first sites. Raises ValueError."""
        try:
            return np.array([at[setting] for at, setting in zip(self._places, choice, strict=False)], np.int64)
        except (KeyError, TypeError):
            raise ValueError(f"the policy {tuple(choice)} has a setting that its site may not have") from None

    def choice(self, positions: Sequence[int] | Ints) -> Choice:
        """The policy at these positions ``[S]``."""
        return tuple(settings[place] for settings, place in zip(self.settings, positions, strict=True))

    def is_legal(self, choice: Sequence[Setting]) -> bool:
        """Whether every setting is one that its site may have."""
        return len(choice) == len(self.sites) and all(c in s for c, s in zip(choice, self._places, strict=True))

    def sizes_at(self, positions: Ints) -> Ints:
        """The sizes ``[B, S]`` of settings at ``positions [B, S]``."""
        found: Ints = self.sizes[self._rows, positions]
        return found

    def sizes_of(self, choice: Sequence[Setting]) -> Ints:
        """The size of every setting of a policy ``[S]``."""
        return self.sizes_at(self.positions(choice))

    def shares_of(self, choice: Sequence[Setting]) -> Floats:
        """The share of every site that a policy keeps ``[S]``, 1 where it is the original's."""
        return np.asarray(self.sizes_of(choice) / self.full_sizes)

    @cached_property
    def full_sizes(self) -> Ints:
        """The size of every site in the original ``[S]``."""
        return np.array([site.sizes[-1] for site in self.sites], np.int64)

    @cached_property
    def lengths(self) -> Ints:
        """How many settings each site has ``[S]``."""
        return np.array([len(site.settings) for site in self.sites], np.int64)

    @cached_property
    def sizes(self) -> Ints:
        """The sizes ``[S, K]``, where a site has fewer than K with zeros after them."""
        table = np.zeros((len(self.sites), int(self.lengths.max(initial=0))), np.int64)
        for row, site in zip(table, self.sites, strict=True):
            row[: len(site.sizes)] = site.sizes
        return table

    @cached_property
    def _places(self) -> tuple[dict[Setting, int], ...]:
        """For every site the position of each setting."""
        return tuple({setting: place for place, setting in enumerate(site.settings)} for site in self.sites)

    @cached_property
    def _rows(self) -> Ints:
        return np.arange(len(self.sites))
