"""Group lasso (Wen et al. 2016, Learning Structured Sparsity in Deep Neural Networks, arXiv:1608.03665, equation 1).

    L = Σ l(f(x, W), y) + λ Σ_g √p_g ‖w_g‖₂        p_g: weights of group g

The factor √p makes groups of different sizes comparable (Yuan & Lin 2006). Deviations: a group is a whole coupled
channel, with the rows that produce it, its normalisations' scales and the columns that read it, where the paper has
filters and input channels apart; the gradient of ‖w‖ at 0 is 0. A channel's score is ‖w_g‖₂ / √p_g.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.channels import ChannelWeights
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier


class GroupLasso(Sparsifier):
    """Adds λ Σ √p ‖w‖ to the loss."""

    def __init__(self, network: DenseNetwork, strength: float) -> None:
        self._weights, self._strength = ChannelWeights.of(network.graph, network.model), strength
        self._sizes = [own.detach() for own in self._weights.total(network.model, torch.ones_like)]

    def penalty(self, step: Step) -> Tensor | None:
        """λ Σ √p ‖w‖ over the channels of all sites."""
        squares = self._weights.total(step.model, torch.square)
        parts = [(size.sqrt() * norms(own)).sum() for size, own in zip(self._sizes, squares, strict=True)]
        return self._strength * torch.stack(parts).sum()

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """‖w‖ / √p of every channel: the root mean square of its weights."""
        squares = self._weights.total(model, torch.square)
        return {name: (own.detach() / size.clamp(min=1)).sqrt()
                for name, own, size in zip(self._weights.names, squares, self._sizes, strict=True)}  # fmt: skip

    def state(self) -> Mapping[str, float]:
        """λ: a training with another one is another training."""
        return {"strength": self._strength}

    def restore(self, state: Mapping[str, float]) -> None:
        """Raises ValueError for a training with another λ."""
        if state["strength"] != self._strength:
            raise ValueError("another strength")


def norms(squares: Tensor) -> Tensor:
    """Roots whose derivative at 0 is 0.

    >>> x = torch.tensor([4.0, 0.0], requires_grad=True)
    >>> norms(x).sum().backward()
    >>> x.grad.tolist()
    [0.25, 0.0]
    """
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def group_lasso(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("λ, the weight of Σ √p ‖w‖ in the loss", gt=0, le=1000)] = 1e-4,
) -> Sparsifier:
    """Penalise the norm of all weights of every channel."""
    return GroupLasso(network, strength)
