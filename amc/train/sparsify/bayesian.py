"""Bayesian compression with group normal-Jeffreys priors (Louizos, Ullrich & Welling 2017, Bayesian Compression for
Deep Learning, arXiv:1705.08665, section 3.1: BC-GNJ).

    p(z) ∝ 1/|z|,  p(w | z) = N(0, z²)          z: one scale for all weights that read a channel
    q(z) = N(μ_z, α μ_z²),  q(w | z) = N(z μ_w, z² σ_w²)
    L = E_q l(f(x, W), y) + c_t / N [Σ KL(q(z) ‖ p(z)) + Σ ½ (σ_w² + μ_w² − 1 − log σ_w²)]      equations 6 and 8

The first KL is the approximation of `log_uniform`. Channels with log α > 3 are 0 in the end. A channel's score is
½ log(1 + 1/α) of its z. c_t grows from 0 to 1.

Deviations: z and the noise of the weights are drawn once a step; z is a whole coupled channel; the weights that produce
channels have noise as well; z and σ have optimisers of their own; BatchNorm statistics are recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.gates import GatedChannels, GateLaw, Gates, gated_channels
from amc.train.sparsify.log_uniform import REMOVED, capacity, log_uniform_kl
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier
from amc.train.sparsify.weight_noise import WeightNoise, warmed


class NormalJeffreys(GateLaw):
    """z of every channel: μ_z + √α μ_z ε."""

    def __init__(self, channels: GatedChannels, weight: float, warm_up: float) -> None:
        """``weight``: of the KL term in the loss, when it is warmed up."""
        ones = torch.ones(len(channels), device=channels.weights.device)
        self.mean = ones.clone().requires_grad_(True)
        self.log_variance = (ones * -6.0).requires_grad_(True)
        self.parameters = [self.mean, self.log_variance]
        self._weight, self._warm_up = weight, warm_up

    def log_alpha(self) -> Tensor:
        """log α, at most 8 either way."""
        return (self.log_variance - (self.mean.square() + 1e-8).log()).clamp(-8, 8)

    def sample(self, step: Step) -> Tensor:
        """z of a fresh ε."""
        return self.mean + (self.log_variance / 2).exp() * torch.randn(self.mean.shape).to(self.mean)

    def final(self) -> Tensor:
        """μ_z; 0 for channels that are mostly noise."""
        return torch.where(self.log_alpha() < REMOVED, self.mean, 0.0)

    def penalty(self, step: Step) -> Tensor:
        """c_t times the weight times Σ KL(q(z) ‖ p(z))."""
        return self._weight * warmed(step, self._warm_up) * log_uniform_kl(self.log_alpha()).sum()

    def scores(self) -> Tensor:
        """½ log(1 + 1/α)."""
        return capacity(self.log_alpha())


class BayesianCompression(Sparsifier):
    """Trains scales of channels and weights with noise."""

    changes_forward = True

    def __init__(self, network: DenseNetwork, strength: float, warm_up: float, lr: float) -> None:
        weight, settings = strength / len(network.task.splits.train), f"bayesian {strength} {warm_up} {lr}"
        channels = gated_channels(network)
        self.noise = WeightNoise(network.graph, network.model, -8.0, lr)
        self.gates = Gates(network, channels, NormalJeffreys(channels, weight, warm_up), lr, settings)
        self._weight, self._warm_up = weight, warm_up

    def before_step(self, step: Step) -> None:
        """Draw scales and weights."""
        self.gates.before_step(step)
        self.noise.put()

    def penalty(self, step: Step) -> Tensor | None:
        """c_t / N times both KL terms."""
        parts = [normal_kl(mean, self.noise.log_variances[name]).sum() for name, mean in self.noise.means.items()]
        total = torch.stack(parts).sum()
        return self.gates.law.penalty(step) + self._weight * warmed(step, self._warm_up) * total

    def after_step(self, step: Step) -> None:
        """Take the noise away, and train what it is drawn by."""
        self.noise.take()
        self.gates.after_step(step)

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """½ log(1 + 1/α) of every channel's scale."""
        return self.gates.scores(model)

    def finish(self, model: nn.Module) -> None:
        """Fold the scales into the weights."""
        self.gates.finish(model)

    def state(self) -> Mapping[str, Any]:
        """Of the scales and of the noise."""
        return {"gates": dict(self.gates.state()), "noise": dict(self.noise.state())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another training."""
        self.gates.restore(state["gates"])
        self.noise.restore(state["noise"])


def normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ (σ² + μ² − 1 − log σ²).

    >>> normal_kl(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0])).tolist()
    [0.0, 2.0]
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance)


def bayesian_compression(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("weight of the KL terms; 1: the paper's bound", gt=0, le=1000)] = 1.0,
    warm_up: Annotated[float, about("share of the steps over which that weight grows", ge=0, le=1)] = 0.5,
    lr: Annotated[float, about("Adam's learning rate of scales and variances", gt=0, le=10)] = 0.03,
) -> Sparsifier:
    """Train with a prior that wants channels to vanish."""
    return BayesianCompression(network, strength, warm_up, lr)
