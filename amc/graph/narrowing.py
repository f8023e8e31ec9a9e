"""Pruning a network that was pruned before: its layers have the axes that are left."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from amc.graph.channels import Axis, Kept, Layer
from amc.graph.surgery import ChannelCutter

_ONE = np.zeros(1, np.int64)  # one zeroed channel stands for a removed branch


def narrowed(model: nn.Module, layers: Sequence[Layer], had: Kept, kept: Kept) -> nn.Module:
    """A copy of ``model`` that keeps fewer channels: ``kept`` of those that it ``had``.

    ``layers`` and the numbers of channels are those of the unpruned network. Raises ValueError where a channel is to be
    kept that the model no longer has.

    >>> import torch
    >>> from amc.graph import build_graph
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval()
    >>> layers = build_graph(model, torch.ones(1, 4)).layers
    >>> first = narrowed(model, layers, [np.arange(6)], [np.array([1, 3, 5])])
    >>> narrowed(first, layers, [np.array([1, 3, 5])], [np.array([1, 5])])[0]
    Linear(in_features=4, out_features=2, bias=True)
    """
    for site, (before, after) in enumerate(zip(had, kept, strict=True)):
        if not np.isin(after, before).all():
            raise ValueError(f"site {site} is to keep channels that the network no longer has: {after} of {before}")
    left = [channels if len(channels) else _ONE for channels in had]
    places = [np.searchsorted(before, after) for before, after in zip(left, kept, strict=True)]
    own = copy.deepcopy(model)
    ChannelCutter(own, [remaining(layer, left) for layer in layers]).cut(places)
    return own


def remaining(layer: Layer, kept: Kept) -> Layer:
    """The layer as it is in a network that keeps the channels ``kept``, renumbered from 0."""
    return replace(layer, output=_remaining(layer.output, kept), input=_remaining(layer.input, kept))


def _remaining(axis: Axis | None, kept: Kept) -> Axis | None:
    if axis is None:
        return None
    positions = axis.kept(kept)
    site, channel = axis.site[positions], axis.channel[positions].copy()
    for own in np.unique(site[site >= 0]):
        mine = site == own
        channel[mine] = np.searchsorted(kept[own], channel[mine])
    return Axis(site, channel)
