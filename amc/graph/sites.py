"""The sites of a network, and how its tensors depend on them: all that other packages need to know of a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amc.graph.channels import Layer, Statistic
from amc.graph.trace import Trace


class SiteFeatures(NamedTuple):
    """A site in the notation of AMC's state features (arXiv:1802.03494, section 3.1).

    All but the cost are those of the first layer that produces the site's channels.

    >>> SiteFeatures(n=64, c=32, h=8, w=8, stride=1, k=3, macs=1.2e6).k
    3
    """

    n: float
    """Output channels."""
    c: float
    """Input channels; 0 for a parameter that a function uses."""
    h: float
    """Height of the input, in pixels; 1 where there is none."""
    w: float
    """Width of the input, in pixels; 1 where there is none."""
    stride: float
    """In pixels; 1 for a linear layer."""
    k: float
    """Width of the kernel, in pixels; 1 for a linear layer."""
    macs: float
    """Multiply-accumulates of all layers that produce the site's channels, for one sample."""


@dataclass(frozen=True, eq=False)
class Site:
    """A group of channels that can only be removed together."""

    name: str
    """The first layer that produces them."""
    channels: int
    """How many there are. A channel may take several positions, such as those of a head of attention."""
    layers: tuple[str, ...]
    """All layers whose outputs (or only channels) are cut."""
    consumers: tuple[str, ...]
    """All layers whose inputs are cut."""
    features: SiteFeatures


@dataclass(frozen=True)
class Refusal:
    """Channels that are not offered as a site, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Graph:
    """The sites of a network in forward order, and how its tensors depend on them (`amc.graph.build.build_graph`)."""

    sites: tuple[Site, ...]
    layers: tuple[Layer, ...]
    refusals: tuple[Refusal, ...]
    trace: Trace
    growth: NDArray[np.float64]
    """``[T, S]``: how many elements of activation t belong to one channel of site s."""
    statistics: tuple[Statistic, ...] = ()
    """Where the network takes statistics over channels: without a channel they leave it out."""


def consumers(graph: Graph, site: int) -> Iterator[Layer]:
    """The layers whose inputs a site cuts.

    >>> import torch
    >>> from amc.graph import build_graph
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)).eval()
    >>> [layer.name for layer in consumers(build_graph(model, torch.ones(1, 4)), site=0)]
    ['1']
    """
    for layer in graph.layers:
        if layer.input is not None and bool((layer.input.site == site).any()):
            yield layer
