"""Criteria: which of a site's channels matter most. A criterion gives one nested order for all widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import ConfigError, did_you_mean
from amc.graph.build import Graph, consumers
from amc.graph.surgery import weight_of
from amc.reconstruction.least_squares import Moments
from amc.runtime.plugins import is_plugin, load_plugin


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the site's channels."""

    weight: Tensor
    """``[out, in, taps]``."""
    positions: Tensor
    """Input positions that belong to the site ``[P]``."""
    channels: Tensor
    """The site's channel at each of them ``[P]``."""
    moments: Moments | None
    """Of the layer's inputs, in the order of ``weight.flatten(1)``; None where none were collected."""


@dataclass(frozen=True, eq=False)
class SiteView:
    """What a criterion sees of a site."""

    channels: int
    readers: tuple[Reader, ...]


Criterion = Callable[[SiteView], Tensor]
"""Gives the site's channels ``[channels]``, the most important first."""

_REGISTRY: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under a name."""

    def register(function: Criterion) -> Criterion:
        _REGISTRY[name] = function
        return function

    return register


def criteria() -> dict[str, Criterion]:
    """All criteria by name."""
    from amc.importance import magnitude, obs  # noqa: F401  (they register themselves)

    return dict(_REGISTRY)


def load_criterion(name: str) -> Criterion:
    """A criterion by name or ``file.py:function``."""
    known = criteria()
    if name in known:
        return known[name]
    if is_plugin(name):
        return load_plugin(name)
    raise ConfigError(f"unknown criterion '{name}'.{did_you_mean(name, [*known, 'file.py:function'])}")


def rank(name: str, graph: Graph, model: nn.Module, moments: Mapping[str, Moments]) -> list[Tensor]:
    """For every site its channels, the most important first. The result of a plug-in is checked."""
    judge = load_criterion(name)
    orders = []
    for index, site in enumerate(graph.sites):
        order = _asked(judge, name, view(graph, model, moments, index))
        if sorted(order.tolist()) != list(range(site.channels)):
            raise ConfigError(
                f"the criterion {name} did not give every one of the {site.channels} channels of '{site.name}' once."
            )
        orders.append(order)
    return orders


def _asked(judge: Criterion, name: str, site: SiteView) -> Tensor:
    """The criterion's answer. Whatever a plug-in throws is its user's mistake."""
    try:
        return torch.as_tensor(judge(site)).cpu()
    except Exception as error:
        if not is_plugin(name):
            raise
        raise ConfigError(f"the criterion {name} fails: {type(error).__name__}: {error}") from error


def view(graph: Graph, model: nn.Module, moments: Mapping[str, Moments], index: int) -> SiteView:
    """What a criterion sees of site ``index``."""
    site, found = graph.sites[index], []
    for layer in consumers(graph, index):
        assert layer.input is not None
        weight = weight_of(model, layer)
        mine = torch.from_numpy((layer.input.site == index).nonzero()[0])
        channels = torch.from_numpy(layer.input.channel)[mine]
        found.append(Reader(weight.detach().flatten(2) if weight.ndim > 2 else weight.detach()[..., None],
                            mine.to(weight.device), channels.to(weight.device), moments.get(layer.name)))  # fmt: skip
    return SiteView(site.channels, tuple(found))


def descending(scores: Tensor) -> Tensor:
    """Channels by falling score; ties keep their order."""
    return scores.argsort(descending=True, stable=True)
