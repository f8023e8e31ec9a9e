"""The sites of a network, and how its tensors depend on them: what inspecting gives to everything above."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc.graph.channels import Layer, Statistic
from amc.graph.trace import Trace


@dataclass(frozen=True, eq=False)
class Site:
    """A group of channels that can only be removed together."""

    name: str
    """The first layer that produces them."""
    channels: int
    """How many choices there are. One may stand for several positions: a head of attention, a group of channels."""
    layers: tuple[str, ...]
    """All layers whose outputs (or only channels) are cut."""
    consumers: tuple[str, ...]
    """All layers whose inputs are cut."""
    features: tuple[float, float, float, float, float, float] = (0, 0, 0, 0, 0, 0)
    """n, c, h, w, stride, k of the first layer: output and input channels, input height and width."""


@dataclass(frozen=True)
class Refusal:
    """Channels that are not offered as a site, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Graph:
    """The sites of a network in forward order, and how its tensors depend on them."""

    sites: tuple[Site, ...]
    layers: tuple[Layer, ...]
    refusals: tuple[Refusal, ...]
    trace: Trace
    growth: NDArray[np.float64]
    """``[T, S]``: how many elements of activation t hang on one channel of site s."""
    statistics: tuple[Statistic, ...] = ()
    """Where the network takes statistics over channels: removing channels is leaving them out there."""


def consumers(graph: Graph, site: int) -> Iterator[Layer]:
    """The layers whose inputs hang on a site."""
    for layer in graph.layers:
        if layer.input is not None and bool((layer.input.site == site).any()):
            yield layer
