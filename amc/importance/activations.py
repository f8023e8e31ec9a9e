"""Statistics of feature maps, over calibration samples and positions.

======================  ================================  ==============================================
``mean-activation``     E[a]                              Molchanov et al. 2016, 1611.06440, section 2.2
``std-activation``      √(E[a²] − E[a]²)                  Molchanov et al. 2016
``apoz``                1 − share of a = 0                Hu et al. 2016, 1607.03250, equation 1
``l1-activation``       E|a|                              He et al. 2017, 1707.06168 (first k by magnitude)
======================  ================================  ==============================================

Deviations: a is taken where the channel is read (after the activation, and after pooling if there is any in between)
and averaged over all readers; the papers read each layer's own output.
"""

from __future__ import annotations

from torch import Tensor

from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import Activations, SiteView

_MOLCHANOV = "Molchanov et al. 2016, Pruning CNNs for Resource Efficient Inference, arXiv:1611.06440"


def _activations(site: SiteView) -> Activations:
    return required(site.activations, "activations of convolutions or linear layers")


def mean_activation(site: SiteView) -> Tensor:
    """Mean of each channel's feature map ``[C]``."""
    return _activations(site).mean


def std_activation(site: SiteView) -> Tensor:
    """Standard deviation of each channel's feature map ``[C]``."""
    maps = _activations(site)
    return (maps.square - maps.mean.square()).clamp_min(0).sqrt()


def apoz(site: SiteView) -> Tensor:
    """Share of each channel's feature map that is not 0 ``[C]``.

    >>> import torch
    >>> maps = Activations(*torch.ones(3, 2), zeros=torch.tensor([0.25, 1.0]))
    >>> apoz(SiteView(2, activations=maps)).tolist()
    [0.75, 0.0]
    """
    return 1 - _activations(site).zeros


def l1_activation(site: SiteView) -> Tensor:
    """Mean absolute value of each channel's feature map ``[C]``."""
    return _activations(site).absolute


_NEEDS = frozenset({Need.ACTIVATIONS})
CRITERIA = (
    Criterion("mean-activation", "mean of a channel's feature map", _MOLCHANOV, mean_activation, _NEEDS,
              dead_is_least=False),
    Criterion("std-activation", "standard deviation of a channel's feature map", _MOLCHANOV, std_activation, _NEEDS),
    Criterion("apoz", "share of a channel's feature map that is not 0",
              "Hu et al. 2016, Network Trimming, arXiv:1607.03250", apoz, _NEEDS),
    Criterion("l1-activation", "mean absolute value of a channel's feature map",
              "He et al. 2017, Channel Pruning, arXiv:1707.06168", l1_activation, _NEEDS),
)  # fmt: skip
