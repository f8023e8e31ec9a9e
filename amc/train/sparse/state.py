"""What a drop-and-grow rule is told of a sparse network, and the steps that rules are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""By parameter which weights there are: booleans of its shape."""


@dataclass(frozen=True, eq=False)
class SparseState:
    """A sparse network in a step that changes its masks."""

    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    """Of all weights in this step, those that are masked included."""
    momentum: Mapping[str, Tensor]
    """Their exponential moving average, where the rule needs it."""


def smallest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Indices, in the flattened tensor, of the ``count`` smallest values ``among`` (booleans) them.

    >>> smallest(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True]), 1).tolist()
    [2]
    """
    flat = torch.where(among, values.abs(), torch.inf).flatten()
    return flat.argsort(stable=True)[:count]


def largest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Indices, in the flattened tensor, of the ``count`` largest absolute values ``among`` them."""
    flat = torch.where(among, values.abs(), -1.0).flatten()
    return flat.argsort(stable=True, descending=True)[:count]


def dropped(state: SparseState, share: float) -> tuple[Masks, dict[str, int]]:
    """The masks without the ``share`` of every layer's smallest weights, and how many went; one stays at least."""
    masks, removed = {}, {}
    for name, mask in state.masks.items():
        removed[name] = min(int(share * int(mask.sum())), int(mask.sum()) - 1)
        masks[name] = changed(mask, smallest(state.weights[name], mask, removed[name]), False)
    return masks, removed


def changed(mask: Tensor, places: Tensor, value: bool) -> Tensor:
    """A mask with another value in some places of the flattened tensor."""
    own = mask.flatten().clone()
    own[places] = value
    return own.reshape(mask.shape)


def drawn(mask: Tensor, count: int) -> Tensor:
    """Places of ``count`` weights that there are not, drawn by torch's generator."""
    return largest(torch.rand(mask.shape).to(mask.device) + 1, ~mask, count)
