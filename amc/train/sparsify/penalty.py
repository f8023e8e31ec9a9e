"""Penalties on the norm of all weights of a channel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.train.hooks import Step
from amc.train.sparsify.channels import ChannelWeights
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier


class NormPenalty(Sparsifier):
    """Adds λ Σ_g f(‖w_g‖², p_g) to the loss; p_g is the number of weights of channel g. A subclass says f.

    A channel's score is the root mean square of its weights.
    """

    def __init__(self, network: DenseNetwork, strength: float) -> None:
        self._weights, self._strength = ChannelWeights.of(network.graph, network.model), strength
        self._sizes = [own.detach() for own in self._weights.total(network.model, torch.ones_like)]

    @abstractmethod
    def cost(self, squares: Tensor, sizes: Tensor) -> Tensor:
        """f of every channel of a site ``[C]``, from ‖w‖² and p."""

    def penalty(self, step: Step) -> Tensor | None:
        """λ times the sum over the channels of all sites."""
        squares = self._weights.total(step.model, torch.square)
        parts = [self.cost(own, size).sum() for own, size in zip(squares, self._sizes, strict=True)]
        return self._strength * torch.stack(parts).sum()

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """‖w‖ / √p of every channel."""
        return self._weights.root_mean_squares(model)

    def state(self) -> Mapping[str, float]:
        """λ: a training with another one is another training."""
        return {"strength": self._strength}

    def restore(self, state: Mapping[str, float]) -> None:
        """Raises ValueError for a training with another λ."""
        if state["strength"] != self._strength:
            raise ValueError("another strength")


def root(squares: Tensor) -> Tensor:
    """Square roots whose derivative at 0 is 0.

    >>> x = torch.tensor([4.0, 0.0], requires_grad=True)
    >>> root(x).sum().backward()
    >>> x.grad.tolist()
    [0.25, 0.0]
    """
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
