"""BatchNorm scales (Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming, 1708.06519).

    s_c = |γ_c|

Deviations: the scales of all normalisations over a coupled group are summed (the paper has a selection layer for
streams instead); LayerNorm's and GroupNorm's count alike. The paper trains with λ Σ |γ| first, see
`amc.train.sparse_norms`. A site without a normalisation is ranked by the weights that read it.
"""

from __future__ import annotations

from torch import Tensor

from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import SiteView


def bn_scale(site: SiteView) -> Tensor:
    """Sum of the absolute scales of the normalisations over each channel ``[C]``.

    >>> import torch
    >>> from amc.importance import Norm
    >>> norm = Norm(torch.tensor([[[0.5]], [[-2.0]]]), torch.arange(2), torch.arange(2))
    >>> bn_scale(SiteView(2, norms=(norm,))).tolist()
    [0.5, 2.0]
    """
    return site.total(required(site.norms, "scales of normalisations"), lambda part: part.rows().abs().sum(1))


CRITERION = Criterion(
    "bn-scale",
    "absolute scale of the BatchNorms over a channel",
    "Liu et al. 2017, Network Slimming, arXiv:1708.06519",
    bn_scale,
    frozenset({Need.NORMS}),
)
