"""Magnitude: channels with small weights are removed first.

AMC ranks by the weights that read a channel (arXiv:1802.03494, section 3.4): ``l1`` and ``l2``. Li et al. 2016
(arXiv:1608.08710, section 3.1) rank by the filter that produces it, s_c = Σ |W_c|: ``filter-l1`` and ``filter-l2``.

A group may hold layers of very different sizes. ``l1-mean`` and ``l2-mean`` count each layer alike: over all
producers and readers, the mean absolute (squared) weight of the channel in that layer. L2 scores are sums of squares,
without the root, so that they add up over layers.
"""

from __future__ import annotations

from torch import Tensor

from amc.importance.criterion import Criterion, Need
from amc.importance.group import SiteView

_LI = "Li et al. 2016, Pruning Filters for Efficient ConvNets, arXiv:1608.08710"
_AMC = "He et al. 2018, AMC, arXiv:1802.03494, section 3.4"


def _read(site: SiteView, power: int) -> Tensor:
    return site.total(site.readers, lambda part: part.weight.double().abs().pow(power).sum((0, 2))[part.positions])


def _produced(site: SiteView, power: int) -> Tensor:
    return site.total(site.producers, lambda part: part.rows().double().abs().pow(power).sum(1))


def _mean(site: SiteView, power: int) -> Tensor:
    layers = (*site.producers, *site.readers)
    return site.total(
        layers, lambda part: part.rows().double().abs().pow(power).mean(1) * site.channels / len(part.channels)
    )


def l1(site: SiteView) -> Tensor:
    """Sum of the absolute weights that read each channel ``[C]``.

    >>> import torch
    >>> from amc.importance import Reader
    >>> reader = Reader(torch.tensor([[[1.0], [-2.0]]]), torch.arange(2), torch.arange(2))  # [out, in, taps]
    >>> l1(SiteView(2, readers=(reader,))).tolist()
    [1.0, 2.0]
    """
    return _read(site, 1)


def l2(site: SiteView) -> Tensor:
    """Sum of the squared weights that read each channel ``[C]``."""
    return _read(site, 2)


def filter_l1(site: SiteView) -> Tensor:
    """Sum of the absolute weights of each channel's filters ``[C]``.

    >>> import torch
    >>> from amc.importance import Producer
    >>> producer = Producer(torch.tensor([[[3.0, -1.0]], [[0.5, 0.5]]]), torch.arange(2), torch.arange(2))
    >>> filter_l1(SiteView(2, producers=(producer,))).tolist()
    [4.0, 1.0]
    """
    return _produced(site, 1)


def filter_l2(site: SiteView) -> Tensor:
    """Sum of the squared weights of each channel's filters ``[C]``."""
    return _produced(site, 2)


def l1_mean(site: SiteView) -> Tensor:
    """Mean absolute weight of each channel in every layer, summed over layers ``[C]``."""
    return _mean(site, 1)


def l2_mean(site: SiteView) -> Tensor:
    """Mean squared weight of each channel in every layer, summed over layers ``[C]``."""
    return _mean(site, 2)


_READERS, _PRODUCERS = frozenset({Need.READERS}), frozenset({Need.PRODUCERS})
CRITERIA = (
    Criterion("l1", "absolute weights that read a channel", _AMC, l1, _READERS),
    Criterion("l2", "squared weights that read a channel", _AMC, l2, _READERS),
    Criterion("filter-l1", "absolute weights of a channel's filters", _LI, filter_l1, _PRODUCERS),
    Criterion("filter-l2", "squared weights of a channel's filters", _LI, filter_l2, _PRODUCERS),
    Criterion("l1-mean", "mean absolute weight in every layer of the group", _LI, l1_mean, _READERS | _PRODUCERS),
    Criterion("l2-mean", "mean squared weight in every layer of the group", _LI, l2_mean, _READERS | _PRODUCERS),
)
