"""Group lasso (Wen et al. 2016, Learning Structured Sparsity in Deep Neural Networks, arXiv:1608.03665, equation 1).

    L = Σ l(f(x, W), y) + λ Σ_g √p_g ‖w_g‖₂        p_g: weights of group g

The factor √p makes groups of different sizes comparable (Yuan & Lin 2006). Deviations: a group is a whole coupled
channel, with the rows that produce it, its normalisations' scales and the columns that read it, where the paper has
filters and input channels apart; the gradient of ‖w‖ at 0 is 0.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from amc.runtime.registry import about
from amc.train.plan import Plan
from amc.train.sparsify.penalty import NormPenalty, root
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier


class GroupLasso(NormPenalty):
    """Adds λ Σ √p ‖w‖ to the loss."""

    def cost(self, squares: Tensor, sizes: Tensor) -> Tensor:
        """√p ‖w‖."""
        return sizes.sqrt() * root(squares)


def group_lasso(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("λ, the weight of Σ √p ‖w‖ in the loss", gt=0, le=1000)] = 1e-4,
) -> Sparsifier:
    """Penalise the norm of all weights of every channel."""
    return GroupLasso(network, strength)
