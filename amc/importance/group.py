"""What a criterion sees of a site: the tensors of all layers that the site's channels run through.

A site is a coupled group: a channel of it is a row of every layer that produces it, an entry of every normalisation
over it, and a column of every layer that reads it; all of them are removed together. A layer may hold several positions
of one channel (a head of attention, a channel that was flattened), so every part says to which channel each position
belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from amc.graph.channels import TRANSPOSED, Axis, BareParameter, Layer, ModuleKind
from amc.graph.sites import Graph
from amc.reconstruction.moments import Moments


@dataclass(frozen=True, eq=False)
class Part:
    """A layer's share in a site."""

    weight: Tensor
    """``[out, in, taps]``."""
    positions: Tensor
    """Positions along the axis `dim` of ``weight`` that belong to the site ``[P]``."""
    channels: Tensor
    """The site's channel at each of them ``[P]``."""
    name: str = field(default="", kw_only=True)
    """The weight's name in the network."""
    gradient: Tensor | None = field(default=None, kw_only=True)
    """Mean derivative of the loss, shaped as ``weight`` (`Need.GRADIENTS`)."""
    squared_gradient: Tensor | None = field(default=None, kw_only=True)
    """Mean over samples of its square: the diagonal of the empirical Fisher information."""
    curvature: Tensor | None = field(default=None, kw_only=True)
    """Second derivative of the mean loss by every weight (`Need.CURVATURE`)."""

    dim: ClassVar[int] = 0

    def rows(self, tensor: Tensor | None = None) -> Tensor:
        """The slices ``[P, n]`` that belong to the positions, of ``weight`` or of a tensor of its shape."""
        whole = self.weight if tensor is None else tensor
        return whole.movedim(self.dim, 0)[self.positions].flatten(1)


@dataclass(frozen=True, eq=False)
class Producer(Part):
    """A layer that produces the site's channels: a channel is one of its filters, or several."""


@dataclass(frozen=True, eq=False)
class Norm(Part):
    """A normalisation over the site's channels; ``weight`` is its scale ``[C, 1, 1]``."""

    shift: Tensor | None = None
    """``[C]``."""


@dataclass(frozen=True, eq=False)
class Reader(Part):
    """A layer that reads the site's channels: a channel is one slice of every filter."""

    moments: Moments | None = None
    """Of the layer's inputs, in the order of ``weight.flatten(1)``; None where none were collected."""

    dim: ClassVar[int] = 1


@dataclass(frozen=True, eq=False)
class Activations:
    """Statistics of a site's feature maps where they are read, over samples and positions, each ``[C]`` float64."""

    mean: Tensor
    square: Tensor
    """Mean of the squares."""
    absolute: Tensor
    """Mean of the absolute values."""
    zeros: Tensor
    """Share of exact zeros."""


@dataclass(frozen=True, eq=False)
class SiteView:
    """What a criterion is given of a site: what it declares to need, and nothing else."""

    channels: int
    readers: tuple[Reader, ...] = ()
    producers: tuple[Producer, ...] = ()
    norms: tuple[Norm, ...] = ()
    activations: Activations | None = None
    contributions: Tensor | None = None
    """``[N, C]``: for every sample the derivative of its loss by the channel's activation, times the activation, summed
    over positions and readers: to first order, by how much the loss falls without the channel."""
    weight_contributions: Tensor | None = None
    """``[N, C]``: the same of the channel's weights, summed over all of them."""
    flow: Tensor | None = None
    """``[C]``: the rank in which a channel is removed by synaptic flow."""
    attention: Tensor | None = None
    """``[C]``: mean attention, in (0, 1)."""
    seed: int = 0
    """The seed of this site, for random numbers."""
    name: str = ""
    """The site's."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """All layers of the group."""
        return (*self.producers, *self.norms, *self.readers)

    def total(self, parts: Sequence[Part], score: Callable[[Part], Tensor]) -> Tensor:
        """``score`` of every part, one number a position ``[P]``, summed over positions and parts: ``[C]`` float64.

        >>> reader = Reader(torch.ones(5, 4, 9), torch.arange(4), torch.tensor([0, 0, 1, 1]))
        >>> site = SiteView(2, (reader, reader))
        >>> site.total(site.readers, lambda part: part.rows().sum(1)).tolist()
        [180.0, 180.0]
        """
        device = parts[0].weight.device if parts else None
        scores = torch.zeros(self.channels, dtype=torch.float64, device=device)
        for part in parts:
            scores.index_add_(0, part.channels, score(part).double())
        return scores


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a site's channels lie in one weight of the network."""

    tensor: str
    """The parameter's name."""
    layer: Layer
    kind: type[Part]
    positions: Tensor
    channels: Tensor
    dims: tuple[int, ...]
    """How the parameter's dimensions are turned into ``[out, in, …]``."""

    def oriented(self, tensor: Tensor) -> Tensor:
        """The parameter, or a tensor of its shape, as ``[out, in, taps]``."""
        turned = tensor.permute(self.dims)
        return turned.flatten(2) if turned.ndim > 2 else turned.reshape(*turned.shape, *[1] * (3 - turned.ndim))

    def rows(self, tensor: Tensor) -> Tensor:
        """The slices ``[P, n]`` that belong to the positions, of the parameter or of a tensor of its shape."""
        return self.oriented(tensor).movedim(self.kind.dim, 0)[self.positions].flatten(1)


def slots(graph: Graph, model: nn.Module, site: int) -> Iterator[Slot]:
    """Every weight of the network that holds channels of a site."""
    for layer in graph.layers:
        kind: type[Part]
        if layer.is_conv_or_linear or isinstance(layer.kind, BareParameter):
            kind = Producer
        elif layer.kind is ModuleKind.NORM:
            kind = Norm
        else:
            continue
        if weight_in(model, layer) is None:
            continue
        for axis, part in ((layer.output, kind), (layer.input, Reader)):
            if axis is not None and bool((axis.site == site).any()):
                found = _slot(model, layer, axis, part, site)
                if found is not None:
                    yield found


def weight_in(model: nn.Module, layer: Layer) -> Tensor | None:
    """A layer's weight as the network holds it; None where it has none, as a normalisation without scales."""
    holder, _, key = layer.tensor_name("weight").rpartition(".")
    found = getattr(model.get_submodule(holder), key, None)
    return found if isinstance(found, Tensor) else None


def _slot(model: nn.Module, layer: Layer, axis: Axis, kind: type[Part], site: int) -> Slot | None:
    held = weight_in(model, layer)
    assert held is not None
    dims = tuple(range(held.ndim))
    if isinstance(layer.kind, BareParameter):
        own = layer.kind.dim
        dims = (own, *(d for d in dims if d != own))
    elif held.ndim > 1 and isinstance(model.get_submodule(layer.name), TRANSPOSED):
        dims = (1, 0, *dims[2:])
    length = held.shape[dims[kind.dim]] if kind.dim < held.ndim else 0
    if length != len(axis):  # one number for all channels, or a group's
        return None
    mine = np.flatnonzero(axis.site == site)
    positions, channels = torch.from_numpy(mine), torch.from_numpy(axis.channel[mine])
    return Slot(layer.tensor_name("weight"), layer, kind, positions.to(held.device), channels.to(held.device), dims)
