"""How a network's tensors hang on its sites: the words that inspecting, cutting and counting share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

Kept = Sequence[Ints]
"""For every site, the channels that stay, ascending."""


@dataclass(frozen=True, eq=False)
class Axis:
    """How the channels along one axis of a layer follow the sites.

    Position p belongs to channel ``channel[p]`` of site ``site[p]``; -1 where nothing removes it.
    """

    site: Ints
    channel: Ints

    def kept(self, kept: Kept) -> Ints:
        """The positions that remain when each site keeps the given channels."""
        stays = np.ones(len(self.site), bool)
        for site, channels in enumerate(kept):
            mine = self.site == site
            if mine.any():
                stays[mine] = np.isin(self.channel[mine], channels)
        return np.flatnonzero(stays)

    def counts(self, sites: int) -> tuple[Ints, int]:
        """Positions per channel of each site ``[S]``, and how many always stay: the length is linear in the widths."""
        per_channel = np.zeros(sites, np.int64)
        for site in range(sites):
            mine = self.channel[self.site == site]
            if len(mine):
                per_channel[site] = len(mine) // len(np.unique(mine))
        return per_channel, int((self.site < 0).sum())


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that holds parameters, or a bare parameter, with the axes that sites cut."""

    name: str
    kind: str
    """conv, linear, norm, prelu or parameter."""
    output: Axis | None
    input: Axis | None
    depthwise: bool
    positions: int
    """Output positions of all calls together: MACs = weights × positions. 0 for layers without MACs."""
    taps: int = 1
    """Elements of the kernel."""
    norm: str | None = None
    """The BatchNorm that alone reads this layer's output, if any."""
