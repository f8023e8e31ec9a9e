"""Optimal Brain Damage: second-order change of the loss, weights taken one by one (LeCun et al. 1990).

    obd     s_c = Σ_w ½ h_ww w²                 h: diagonal of the loss's Hessian
    fisher  s_c = Σ_w ½ E[(∂L/∂w)²] w²          the same, with the diagonal of the empirical Fisher information

over all weights w of the channel, in every layer of its group (Theis et al. 2018, arXiv:1801.05787, compare the two).

Deviations: LeCun et al. propagate approximate second derivatives backward; here h is estimated without bias from
products of the Hessian with random signs (`amc.importance.curvature`). Negative estimates count as 0: a trained network
is near a minimum, and LeCun et al. use the non-negative Levenberg-Marquardt approximation for the same reason.
"""

from __future__ import annotations

from torch import Tensor

from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import Part, SiteView

_LECUN = "LeCun, Denker & Solla 1990, Optimal Brain Damage, NIPS 2"


def _saliency(part: Part, second: Tensor) -> Tensor:
    """Σ ½ h w² of every position ``[P]``."""
    return (0.5 * part.rows(second).double().clamp_min(0) * part.rows().double().square()).sum(1)


def obd(site: SiteView) -> Tensor:
    """Change of the loss by the Hessian's diagonal ``[C]``.

    >>> import torch
    >>> from amc.importance import Producer
    >>> weight, curvature = torch.tensor([[[2.0]], [[1.0]]]), torch.tensor([[[3.0]], [[-1.0]]])
    >>> obd(SiteView(2, producers=(Producer(weight, torch.arange(2), torch.arange(2), curvature=curvature),))).tolist()
    [6.0, 0.0]
    """
    known = required(tuple(p for p in site.parts if p.curvature is not None), "second derivatives of weights")
    return site.total(known, lambda part: _saliency(part, required(part.curvature, "second derivatives")))


def fisher(site: SiteView) -> Tensor:
    """Change of the loss by the empirical Fisher information ``[C]``."""
    known = required(tuple(p for p in site.parts if p.squared_gradient is not None), "derivatives of weights")
    return site.total(known, lambda part: _saliency(part, required(part.squared_gradient, "derivatives")))


_WEIGHTS = frozenset({Need.PRODUCERS, Need.NORMS, Need.READERS})
CRITERIA = (
    Criterion("obd", "second-order change of the loss, by the Hessian's diagonal", _LECUN, obd,
              _WEIGHTS | {Need.CURVATURE}),
    Criterion("fisher", "second-order change of the loss, by the empirical Fisher information",
              "Theis et al. 2018, Faster gaze prediction, arXiv:1801.05787", fisher, _WEIGHTS | {Need.GRADIENTS}),
)  # fmt: skip
