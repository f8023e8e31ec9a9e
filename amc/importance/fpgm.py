"""Geometric median: filters that others can replace are removed first (He et al. 2019, FPGM, arXiv:1811.00250).

Equation 4 looks for the filters that are nearest to the geometric median of their layer, by their summed distance to
all filters:

    s_c = Σ_j ‖F_c − F_j‖₂

Deviation: a coupled group has several producing layers, whose distances are summed. A channel with several positions
in a layer has them joined to one filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import Part, SiteView


def fpgm(site: SiteView) -> Tensor:
    """Summed distance of each channel's filters to all others ``[C]``.

    >>> from amc.importance import Producer
    >>> filters = Producer(torch.tensor([[[0.0]], [[1.0]], [[5.0]]]), torch.arange(3), torch.arange(3))
    >>> fpgm(SiteView(3, producers=(filters,))).tolist()
    [6.0, 5.0, 9.0]
    """
    producers = required(site.producers, "producing layers")
    return torch.stack([_distances(part, site.channels) for part in producers]).sum(0)


def _distances(part: Part, channels: int) -> Tensor:
    """Of every channel in one layer ``[C]`` float64; 0 in a layer that holds some of the channels only."""
    order = part.channels.argsort(stable=True)
    if len(order) % channels:
        return torch.zeros(channels, dtype=torch.float64, device=part.weight.device)
    filters = part.rows().double()[order].reshape(channels, -1)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


CRITERION = Criterion(
    "fpgm",
    "distance of a channel's filters to all other filters",
    "He et al. 2019, Filter Pruning via Geometric Median, arXiv:1811.00250",
    fpgm,
    frozenset({Need.PRODUCERS}),
    dead_is_least=False,
)
