"""Sites and their ordered lists of settings. Code above the operators uses only positions in these lists."""

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
"""What an operator does to one site, as a JSON value. Only the operator interprets it: for channels it is the number of
kept channels."""

Choice: TypeAlias = tuple[Setting, ...]
"""A policy as searchers use it: one setting per site, in the order of sites."""


@dataclass(frozen=True)
class SiteSettings:
    """The settings that one site may have.

    >>> SiteSettings("conv1:bits", ("int4", "int8", "float32"), (4, 8, 32), ("bits",)).original
    'float32'
    """

    name: str
    """Unique within a space."""
    settings: tuple[Setting, ...]
    """Distinct settings. The first removes most and has the least cost in every resource; the last is the original."""
    sizes: tuple[int, ...]
    """Ascending integers that represent the settings in arithmetic, for proportions and cost models. They count equal
    parts of the site, such as channels or bits; 0 means that nothing is left of the site."""
    operators: tuple[str, ...] = ("channels",)
    """The kind of the operator that offers the site, and those of operators that have added settings."""
    inside: str | None = None
    """Name of another site of which nothing may be left: then this one has no effect, whatever its setting."""

    def __post_init__(self) -> None:
        """Check settings and sizes. Raises ValueError for an error in an operator."""
        if not self.settings or len(set(self.settings)) != len(self.settings):
            raise ValueError(f"site {self.name!r} needs distinct settings, but has {self.settings}")
        if len(self.sizes) != len(self.settings) or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"site {self.name!r} needs one size per setting, ascending, but has {self.sizes}")
        if self.sizes[0] < 0 or self.sizes[-1] == 0:
            raise ValueError(f"site {self.name!r} needs sizes of at least 0, the original's above 0: {self.sizes}")

    @property
    def original(self) -> Setting:
        """The setting of the original network."""
        return self.settings[-1]

    def only(self, sizes: Sequence[int]) -> SiteSettings:
        """A copy of the site with only the settings of these sizes.

        >>> ranked_site("a", ("x", "y", "z"), "letters").only([1, 3]).settings
        ('x', 'z')
        """
        left = [(setting, size) for setting, size in zip(self.settings, self.sizes, strict=True) if size in sizes]
        return replace(self, settings=tuple(s for s, _ in left), sizes=tuple(size for _, size in left))


def ranked_site(name: str, settings: Sequence[Setting], operator: str) -> SiteSettings:
    """A site whose settings have an order but no natural size: the sizes are 1, 2, 3, ….

    >>> ranked_site("a", ("shared", "own"), "sharing").sizes
    (1, 2)
    """
    return SiteSettings(name, tuple(settings), tuple(range(1, len(settings) + 1)), (operator,))


def numeric_sites(
    names: Sequence[str], settings: Sequence[Sequence[int]], operator: str = "channels"
) -> tuple[SiteSettings, ...]:
    """Sites whose settings are their own sizes, such as the widths of channel groups.

    >>> numeric_sites(["conv1"], [(8, 16)])[0].sizes
    (8, 16)
    """
    return tuple(
        SiteSettings(name, tuple(sizes), tuple(sizes), (operator,)) for name, sizes in zip(names, settings, strict=True)
    )


def frozen_setting(value: object) -> Setting:
    """Convert a parsed JSON value to a setting: lists become tuples. Raises ValueError for other values.

    >>> frozen_setting([2, ["a", 0.5]])
    (2, ('a', 0.5))
    """
    if isinstance(value, list | tuple):
        return tuple(frozen_setting(part) for part in value)
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is not a setting")


@dataclass(frozen=True, eq=False)
class PolicyGrid:
    """All policies of S sites, as the points of a grid with one axis per site.

    Searchers see a policy as positions ``[S]``: position p at site s is the site's p-th setting, and 0 is the cheapest.
    Proportions refer to the sizes of settings. Only operators interpret settings.
    """

    sites: tuple[SiteSettings, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def settings(self) -> tuple[tuple[Setting, ...], ...]:
        """The settings of every site, the cheapest first, the original's last."""
        return tuple(site.settings for site in self.sites)

    @cached_property
    def operators(self) -> frozenset[str]:
        """The kinds of all operators with sites or settings in the grid."""
        return frozenset(name for site in self.sites for name in site.operators)

    @cached_property
    def smallest(self) -> Choice:
        """The policy with the first setting of every site."""
        return tuple(site.settings[0] for site in self.sites)

    @cached_property
    def full(self) -> Choice:
        """The original network."""
        return tuple(site.original for site in self.sites)

    def positions(self, choice: Sequence[Setting]) -> Ints:
        """Positions ``[S]`` of a policy, or of its first sites. Raises ValueError for a setting that is not offered."""
        try:
            return np.array([at[setting] for at, setting in zip(self._places, choice, strict=False)], np.int64)
        except (KeyError, TypeError):
            raise ValueError(f"the policy {tuple(choice)} has a setting that its site does not offer") from None

    def choice(self, positions: Sequence[int] | Ints) -> Choice:
        """The policy at these positions ``[S]``."""
        return tuple(settings[place] for settings, place in zip(self.settings, positions, strict=True))

    def is_legal(self, choice: Sequence[Setting]) -> bool:
        """Whether every setting is offered by its site."""
        return len(choice) == len(self.sites) and all(c in s for c, s in zip(choice, self._places, strict=True))

    def sizes_at(self, positions: Ints) -> Ints:
        """The sizes ``[B, S]`` of settings at ``positions [B, S]``."""
        found: Ints = self.sizes[self._rows, positions]
        return found

    def sizes_of(self, choice: Sequence[Setting]) -> Ints:
        """Sizes ``[S]`` of a policy's settings."""
        return self.sizes_at(self.positions(choice))

    def shares_of(self, choice: Sequence[Setting]) -> Floats:
        """Share ``[S]`` of every site that a policy keeps; 1 for the original's setting."""
        return np.asarray(self.sizes_of(choice) / self.full_sizes)

    @cached_property
    def full_sizes(self) -> Ints:
        """Sizes ``[S]`` of the original's settings."""
        return np.array([site.sizes[-1] for site in self.sites], np.int64)

    @cached_property
    def lengths(self) -> Ints:
        """Number of settings of every site ``[S]``."""
        return np.array([len(site.settings) for site in self.sites], np.int64)

    @cached_property
    def sizes(self) -> Ints:
        """Sizes ``[S, K]`` of all settings, padded with zeros."""
        table = np.zeros((len(self.sites), int(self.lengths.max(initial=0))), np.int64)
        for row, site in zip(table, self.sites, strict=True):
            row[: len(site.sizes)] = site.sizes
        return table

    @cached_property
    def _places(self) -> tuple[dict[Setting, int], ...]:
        """Setting → position, for every site."""
        return tuple({setting: place for place, setting in enumerate(site.settings)} for site in self.sites)

    def canonical(self, choice: Choice) -> Choice:
        """The one policy of all that give the same network: sites without effect have the original's setting.

        >>> branch = SiteSettings("conv1", (0, 4), (0, 4))
        >>> bits = SiteSettings("bits:conv1", (8, 32), (8, 32), ("bits",), inside="conv1")
        >>> PolicyGrid((branch, bits)).canonical((0, 8)), PolicyGrid((branch, bits)).canonical((4, 8))
        ((0, 32), (4, 8))
        """
        if not self._inside:
            return choice
        found, sizes = list(choice), self.sizes_of(choice)
        for site, outer in self._inside:
            if sizes[outer] == 0:
                found[site] = self.sites[site].original
        return tuple(found)

    @cached_property
    def _inside(self) -> tuple[tuple[int, int], ...]:
        """The sites that are inside another one, with that one."""
        places = {name: place for place, name in enumerate(self.names)}
        return tuple((k, places[s.inside]) for k, s in enumerate(self.sites) if s.inside in places)

    @cached_property
    def _rows(self) -> Ints:
        return np.arange(len(self.sites))
