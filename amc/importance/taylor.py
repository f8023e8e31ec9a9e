"""First-order Taylor expansion of the loss in the channel (Molchanov et al. 2016, arXiv:1611.06440).

Setting a feature map a to 0 changes a sample's loss by −Σ ∂L/∂a · a to first order (equation 7):

    taylor         s_c = E |1/M Σ_m ∂L/∂a_m · a_m|      over samples; M positions
    taylor-weight  s_c = E |Σ_w ∂L/∂w · w|              over all weights w of the channel

The second is the form in weights (Molchanov et al. 2019, arXiv:1906.10771, who square instead).

Deviations: in a coupled group all readers (all layers) lose the channel together, so their terms are summed before the
absolute value is taken. M is the same for all channels of a site and is left out.
"""

from __future__ import annotations

from torch import Tensor

from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import SiteView


def taylor(site: SiteView) -> Tensor:
    """Mean over samples of the loss's absolute change without the channel, by its activations ``[C]``.

    >>> import torch
    >>> taylor(SiteView(2, contributions=torch.tensor([[1.0, -1.0], [-3.0, 0.0]]))).tolist()  # two samples
    [2.0, 0.5]
    """
    return required(site.contributions, "derivatives of activations").abs().mean(0)


def taylor_weight(site: SiteView) -> Tensor:
    """The same by its weights ``[C]``."""
    return required(site.weight_contributions, "derivatives of weights").abs().mean(0)


_NEEDS = frozenset({Need.GRADIENTS})
CRITERIA = (
    Criterion("taylor", "activation × gradient: first-order change of the loss",
              "Molchanov et al. 2016, Pruning CNNs for Resource Efficient Inference, arXiv:1611.06440", taylor, _NEEDS),
    Criterion("taylor-weight", "weight × gradient: first-order change of the loss",
              "Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, arXiv:1906.10771",
              taylor_weight, _NEEDS),
)  # fmt: skip
