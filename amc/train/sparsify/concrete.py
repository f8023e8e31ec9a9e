"""Hard-concrete gates (Louizos, Welling & Kingma 2018, Learning Sparse Neural Networks through L0 Regularization,
arXiv:1712.01312).

    s = sigmoid((log u − log(1 − u) + log α) / β),  u ~ U(0, 1)
    z = min(1, max(0, s (ζ − γ) + γ))                                            equations 10 and 11
    P(z ≠ 0) = sigmoid(log α − β log(−γ / ζ))                                    equation 12
    ẑ = min(1, max(0, sigmoid(log α) (ζ − γ) + γ))                               equation 13

with γ = −0.1, ζ = 1.1 and β = 2/3 as in the paper. The penalty is λ times the expected share of weights that are not
switched off, Σ_g p_g P(z_g ≠ 0) / Σ_g p_g: λ itself is what a network pays whose gates are all open.

A channel's score is P(z ≠ 0). Deviations: a gate is a whole coupled channel; all samples of a step have the same gates;
gates have an optimiser of their own; BatchNorm statistics are recomputed with the final gates.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.gates import GatedChannels, GateLaw, Gates, gated_channels
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier

LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
"""γ, ζ and β."""


class HardConcrete(GateLaw):
    """Gates that are exactly 0 or 1 with a probability that is learned."""

    def __init__(self, channels: GatedChannels, strength: float, keep: float) -> None:
        """``keep``: P(z ≠ 0) before training."""
        start = math.log(keep / (1 - keep)) + BETA * math.log(-LOW / HIGH)
        noise = 0.01 * torch.randn(len(channels)).to(channels.weights.device)
        self.log_alpha = (start + noise).requires_grad_(True)
        self.parameters = [self.log_alpha]
        self._strength, self._shares = strength, channels.weights / channels.weights.sum()

    def sample(self, step: Step) -> Tensor:
        """z of a fresh u."""
        u = torch.rand(self.log_alpha.shape).clamp(1e-6, 1 - 1e-6).to(self.log_alpha.device)
        return stretched(torch.sigmoid((u.logit() + self.log_alpha) / BETA))

    def final(self) -> Tensor:
        """ẑ."""
        return stretched(torch.sigmoid(self.log_alpha))

    def penalty(self, step: Step) -> Tensor:
        """λ times the expected share of weights that are not switched off."""
        return self._strength * (self._shares * open_probability(self.log_alpha)).sum()

    def scores(self) -> Tensor:
        """P(z ≠ 0)."""
        return open_probability(self.log_alpha)


def stretched(s: Tensor) -> Tensor:
    """min(1, max(0, s (ζ − γ) + γ)).

    >>> stretched(torch.tensor([0.05, 0.5, 0.95])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z ≠ 0)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


def hard_concrete(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("λ, what a network with all gates open adds to the loss", gt=0, le=1000)] = 0.5,
    keep: Annotated[float, about("probability of an open gate before training", gt=0, lt=1)] = 0.9,
    lr: Annotated[float, about("Adam's learning rate of the gates", gt=0, le=10)] = 0.02,
) -> Sparsifier:
    """Train with gates, and pay for those that are open."""
    channels = gated_channels(network)
    settings = f"hard-concrete {strength} {keep} {lr}"
    return Gates(network, channels, HardConcrete(channels, strength, keep), lr, settings)
