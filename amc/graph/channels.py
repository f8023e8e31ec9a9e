"""How a network's tensors depend on its sites: the types that inspecting, cutting and counting share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Ints = NDArray[np.int64]

Kept = Sequence[Ints]
"""For every site the channels that are kept, ascending."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Which channels of which sites lie along one axis of a layer.

    Position p belongs to channel ``channel[p]`` of site ``site[p]``; both are -1 where nothing removes it.

    >>> axis = Axis(np.array([0, 0, 0, 0, -1]), np.array([0, 0, 1, 1, -1]))  # two positions a channel, and one fixed
    >>> axis.kept([np.array([1])])
    array([2, 3, 4])
    >>> axis.counts(1)
    (array([2]), 1)
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


class ModuleKind(Enum):
    """A module that holds tensors itself."""

    CONV = "convolution"
    LINEAR = "linear layer"
    NORM = "normalisation"
    PRELU = "PReLU"
    OTHER = "other"


@dataclass(frozen=True)
class BareParameter:
    """A parameter that the network uses without a layer of torch around it.

    `Layer.output` lies along its dimension ``dim``, `Layer.input` along the other one.
    """

    dim: int


@dataclass(frozen=True)
class ShapeAttribute:
    """A whole number that a module holds, such as a number of heads: in proportion to the length of `Layer.output`.

    With a ``place`` the attribute is a tuple, such as a shape, and its entry there is the length of `Layer.output`.
    """

    key: str
    place: int | None = None


@dataclass(frozen=True)
class ActivationProduct:
    """A product of two activations, as attention has them: no tensors, and MACs in proportion to `Layer.output`."""


LayerKind = ModuleKind | BareParameter | ShapeAttribute | ActivationProduct


@dataclass(frozen=True, eq=False)
class Layer:
    """Something in the network that changes with its sites: most often a module, with the axes that sites cut.

    >>> half = Axis(np.array([0, 0, -1, -1]), np.array([0, 1, -1, -1]))
    >>> layer = Layer("block.conv1", ModuleKind.CONV, half)
    >>> layer.is_conv_or_linear, layer.tensor_name("weight")
    (True, 'block.conv1.weight')
    >>> Layer("scale", BareParameter(0), half).tensor_name("scale")
    'scale'
    >>> Layer("attention", ShapeAttribute("num_heads"), half).has_tensors
    False
    """

    name: str
    """The module; of a `BareParameter` the parameter."""
    kind: LayerKind
    output: Axis | None
    input: Axis | None = None
    by_group: bool = False
    """Whether whole groups are removed, as in depthwise layers; else the groups of a grouped convolution shrink."""
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
    def has_tensors(self) -> bool:
        """Whether it is a module or a parameter."""
        return isinstance(self.kind, ModuleKind | BareParameter)

    @property
    def is_conv_or_linear(self) -> bool:
        """Whether it is a module that multiplies its input with weights."""
        return self.kind in (ModuleKind.CONV, ModuleKind.LINEAR)

    def tensor_name(self, key: str) -> str:
        """The name in the network of one of its tensors; of a bare parameter it is the parameter's own."""
        return self.name if isinstance(self.kind, BareParameter) else f"{self.name}.{key}"


@dataclass(frozen=True, eq=False)
class Statistic:
    """An operator that takes statistics over channels: the ``number``-th of its kind in a forward pass."""

    number: int
    dim: int
    channels: Axis


def kind_of(module: nn.Module) -> ModuleKind:
    """What a module is.

    >>> kind_of(nn.BatchNorm2d(4))
    <ModuleKind.NORM: 'normalisation'>
    """
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return ModuleKind.CONV
    if isinstance(module, nn.Linear):
        return ModuleKind.LINEAR
    if isinstance(module, nn.PReLU):
        return ModuleKind.PRELU
    return ModuleKind.NORM if isinstance(module, NORMS) else ModuleKind.OTHER
