"""Continuous sparsification (Savarese, Silva & Maire 2019, Winning the Lottery with Continuous Sparsification,
arXiv:1912.04427, equation 7 and algorithm 2).

    m = sigmoid(β s),    L = Σ l(f(x, m ⊙ W), y) + λ ‖m‖₁,    β from 1 to β_max, exponentially

As β grows the gates become steps, and in the end they are 1 where s > 0, else 0. The penalty is λ times the share of
the weights behind the gates, Σ_g p_g m_g / Σ_g p_g.

A channel's score is sigmoid(s). Deviations: a gate is a whole coupled channel, where the paper has one for each weight;
one round; gates have an optimiser of their own; BatchNorm statistics are recomputed with the final gates.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.gates import GatedChannels, GateLaw, Gates, gated_channels
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier


class Continuous(GateLaw):
    """Gates that become steps."""

    def __init__(self, channels: GatedChannels, strength: float, start: float, steepest: float) -> None:
        """``start``: s before training. ``steepest``: β at the end."""
        self.s = torch.full((len(channels),), start, device=channels.weights.device).requires_grad_(True)
        self.parameters = [self.s]
        self._strength, self._steepest = strength, steepest
        self._shares = channels.weights / channels.weights.sum()

    def _soft(self, step: Step) -> Tensor:
        beta: float = self._steepest ** (step.number / max(1, step.steps - 1))
        return torch.sigmoid(beta * self.s)

    def sample(self, step: Step) -> Tensor:
        """m of this step; nothing is drawn."""
        return self._soft(step)

    def final(self) -> Tensor:
        """1 where s > 0."""
        return (self.s > 0).to(self.s.dtype)

    def penalty(self, step: Step) -> Tensor:
        """λ times the share of the weights behind the gates."""
        return self._strength * (self._shares * self._soft(step)).sum()

    def scores(self) -> Tensor:
        """sigmoid(s)."""
        return torch.sigmoid(self.s)


def continuous_sparsification(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("λ, what a network with all gates open adds to the loss", gt=0, le=1000)] = 0.5,
    start: Annotated[float, about("s before training", ge=-10, le=10)] = 0.5,
    steepest: Annotated[float, about("β at the end", ge=1, le=1e6)] = 200.0,
    lr: Annotated[float, about("Adam's learning rate of s", gt=0, le=10)] = 0.02,
) -> Sparsifier:
    """Train with gates that harden."""
    channels = gated_channels(network)
    settings = f"continuous {strength} {start} {steepest} {lr}"
    return Gates(network, channels, Continuous(channels, strength, start, steepest), lr, settings)
