"""Size of the weights that read a channel: AMC ranks by the L1 norm (arXiv:1802.03494, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from amc.importance import SiteView, criterion, descending


def _magnitude(site: SiteView, power: int) -> Tensor:
    device = site.readers[0].weight.device
    scores = torch.zeros(site.channels, dtype=torch.float64, device=device)
    for reader in site.readers:
        per_position = reader.weight.double().abs().pow(power).sum((0, 2))[reader.positions]
        scores.index_add_(0, reader.channels, per_position)
    return descending(scores)


@criterion("l1")
def l1(site: SiteView) -> Tensor:
    """Sum of absolute weights over all readers."""
    return _magnitude(site, 1)


@criterion("l2")
def l2(site: SiteView) -> Tensor:
    """Sum of squared weights over all readers."""
    return _magnitude(site, 2)
