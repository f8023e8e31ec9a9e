"""Connection sensitivity (Lee et al. 2018, SNIP, arXiv:1810.02340).

    s_w = |∂L/∂w · w| / Σ_k |∂L/∂w_k · w_k|        equation 6; L: the mean loss

summed over all weights of the channel, in every layer of its group. The denominator, one number for the whole
network, changes no order and is left out. Deviation: the paper takes one batch and a network that was not trained;
here it is the network as it is, and all calibration samples that gradients are taken of.
"""

from __future__ import annotations

from torch import Tensor

from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import Part, SiteView


def snip(site: SiteView) -> Tensor:
    """Summed sensitivity of each channel's weights ``[C]``.

    >>> import torch
    >>> from amc.importance import Producer
    >>> weight, gradient = torch.tensor([[[3.0]], [[-1.0]]]), torch.tensor([[[0.5]], [[4.0]]])
    >>> snip(SiteView(2, producers=(Producer(weight, torch.arange(2), torch.arange(2), gradient=gradient),))).tolist()
    [1.5, 4.0]
    """
    known = required(tuple(p for p in site.parts if p.gradient is not None), "derivatives of weights")

    def sensitivity(part: Part) -> Tensor:
        return (part.rows() * part.rows(part.gradient)).double().abs().sum(1)

    return site.total(known, sensitivity)


CRITERION = Criterion(
    "snip",
    "absolute weight × gradient of the mean loss, weight by weight",
    "Lee et al. 2018, SNIP, arXiv:1810.02340",
    snip,
    frozenset({Need.PRODUCERS, Need.NORMS, Need.READERS, Need.GRADIENTS}),
)
