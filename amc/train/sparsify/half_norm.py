"""Modified L1/2 penalty (Chang & Sha 2018, Prune Deep Neural Networks With the Modified L1/2 Penalty,
doi:10.1109/ACCESS.2018.2886876).

    L = Σ l(f(x, W), y) + λ Σ_g p_g (√(r_g + ε) − √ε),    r_g = ‖w_g‖₂ / √p_g

√|w| drives small values to 0 harder than |w| and hurts large ones less, but its derivative at 0 has no bound. The paper
modifies it near 0 so that it has one. Deviations: the paper is not open, so its exact modification is not known to us,
and the shift by ε is ours; the paper penalises single weights, here r is the root mean square of all weights of a
coupled channel, so that whole channels vanish.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from amc.runtime.registry import about
from amc.train.plan import Plan
from amc.train.sparsify.penalty import NormPenalty, root
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier

EPSILON = 1e-3


class HalfNorm(NormPenalty):
    """Adds λ Σ p (√(r + ε) − √ε) to the loss."""

    def cost(self, squares: Tensor, sizes: Tensor) -> Tensor:
        """p (√(r + ε) − √ε); its gradient is that of the group lasso times 1 / (2 √(r + ε))."""
        mean = root(squares / sizes.clamp(min=1))
        rise: Tensor = (mean + EPSILON).sqrt() - EPSILON**0.5
        return sizes * rise


def half_norm(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("λ, the weight of the penalty in the loss", gt=0, le=1000)] = 5e-5,
) -> Sparsifier:
    """Penalise the square root of every channel's root mean square weight."""
    return HalfNorm(network, strength)
