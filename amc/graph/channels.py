"""How a network's tensors hang on its sites: the words that inspecting, cutting and counting share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

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

    def __len__(self) -> int:
        return len(self.site)

    def kept(self, kept: Kept) -> Ints:
        """The positions that remain when each site keeps the given channels."""
        stays = np.ones(len(self.site), bool)
        for site in np.unique(self.site[self.site >= 0]):
            mine = self.site == site
            stays[mine] = np.isin(self.channel[mine], kept[site])
        return np.flatnonzero(stays)

    def counts(self, sites: int) -> tuple[Ints, int]:
        """Positions per channel of each site ``[S]``, and how many always stay: the length is linear in the widths."""
        per_channel = np.zeros(sites, np.int64)
        for site in np.unique(self.site[self.site >= 0]):
            mine = self.channel[self.site == site]
            per_channel[site] = len(mine) // len(np.unique(mine))
        return per_channel, int((self.site < 0).sum())


def length_of(axis: Axis | None, length: int, sites: int) -> tuple[Ints, int]:
    """A dimension's length as ``slopes @ w + constant`` for widths ``w [S]``; ``length`` at full width.

    A dimension without an axis never changes, nor does one of length 1 that all channels share.

    >>> length_of(None, 3, 2)
    (array([0, 0]), 3)
    """
    if axis is None or len(axis) != length:
        return np.zeros(sites, np.int64), length
    return axis.counts(sites)


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that holds parameters, or one of the things named below, with the axes that sites cut."""

    name: str
    """The module; for ``parameter`` the parameter."""
    kind: str
    """conv, linear, norm, prelu: modules. ``parameter:d``: a bare parameter, ``output`` along its dimension d,
    ``input`` along the other. ``attribute:a``: a whole number a of the module, in proportion to ``output``;
    ``attribute:a.i``: entry i of a tuple. ``product``: MACs without weights, as attention has them, in proportion to
    ``output``."""
    output: Axis | None
    input: Axis | None = None
    by_group: bool = False
    """Of a grouped convolution or normalisation whole groups go, as in depthwise layers; else the groups shrink."""
    positions: int = 0
    """Output positions of all calls together: MACs = weights × positions. 0 for layers without MACs; of a product,
    its MACs per position of ``output``."""
    macs: int = 0
    """Of all calls together, at full width."""
    taps: int = 1
    """Elements of the kernel; where whole groups go, weights of one output channel."""
    norm: str | None = None
    """The BatchNorm with running statistics that alone reads this layer's output, and nothing else, if any."""

    @property
    def is_weighty(self) -> bool:
        """Whether it has tensors."""
        return not self.kind.startswith(("attribute", "product"))


@dataclass(frozen=True, eq=False)
class Statistic:
    """An operator that takes statistics over channels: the ``number``-th of its kind in a forward pass."""

    number: int
    dim: int
    channels: Axis


def kind_of(module: nn.Module) -> str:
    """What a module is to `Layer.kind`; ``other`` where it is no layer."""
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.PReLU):
        return "prelu"
    return "norm" if isinstance(module, NORMS) else "other"
