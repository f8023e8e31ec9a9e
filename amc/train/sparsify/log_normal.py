"""Structured Bayesian pruning (Neklyudov et al. 2017, Structured Bayesian Pruning via Log-Normal Multiplicative Noise,
arXiv:1705.07283).

    p(z) = LogU_[a, b](z),  q(z) = LogN_[a, b](z; μ, σ²)          log z in [a, b] = [−20, 0]
    KL(q ‖ p) = log(b − a) − log(√(2πe) σ) − log Z − (A φ(A) − B φ(B)) / (2 Z)
    A = (a − μ) / σ,  B = (b − μ) / σ,  Z = Φ(B) − Φ(A)
    SNR = E z / √(E z² − (E z)²)

A channel's noise z multiplies it; channels whose signal-to-noise ratio is below 1 are 0 in the end, the others have
E z. The score is the SNR. The KL term has the weight c_t / N, as in `variational_dropout`.

Deviations: z is a whole coupled channel, and drawn once a step for all samples; μ and σ have an optimiser of their own;
BatchNorm statistics are recomputed.
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
from amc.train.sparsify.weight_noise import warmed

LOW, HIGH = -20.0, 0.0
"""a and b."""


class LogNormal(GateLaw):
    """Truncated log-normal noise; all of it is computed in float64."""

    def __init__(self, channels: GatedChannels, weight: float, warm_up: float) -> None:
        """``weight``: of the KL term in the loss, when it is warmed up."""
        zeros = torch.zeros(len(channels), dtype=torch.float64, device=channels.weights.device)
        self.mu = (zeros - 0.05).requires_grad_(True)
        self.log_sigma = (zeros - 4.0).requires_grad_(True)
        self.parameters = [self.mu, self.log_sigma]
        self._weight, self._warm_up = weight, warm_up

    def sample(self, step: Step) -> Tensor:
        """z of a fresh uniform number, by the inverse distribution function."""
        sigma = self.log_sigma.exp()
        low, high = (torch.special.ndtr((end - self.mu) / sigma) for end in (LOW, HIGH))
        u = torch.rand(self.mu.shape, dtype=torch.float64).to(self.mu.device)
        place = (low + u * (high - low)).clamp(1e-12, 1 - 1e-12)
        drawn: Tensor = (self.mu + sigma * torch.special.ndtri(place)).clamp(LOW, HIGH)
        return drawn.exp().float()

    def final(self) -> Tensor:
        """E z; 0 where the signal-to-noise ratio is below 1."""
        mean, ratio = moments(self.mu, self.log_sigma)
        return torch.where(ratio >= 1, mean, 0.0).float()

    def penalty(self, step: Step) -> Tensor:
        """c_t times the weight times Σ KL(q ‖ p)."""
        return self._weight * warmed(step, self._warm_up) * log_normal_kl(self.mu, self.log_sigma).sum().float()

    def scores(self) -> Tensor:
        """The signal-to-noise ratio."""
        return moments(self.mu, self.log_sigma)[1]


def _log_mass(mu: Tensor, sigma: Tensor, shift: float) -> Tensor:
    """log(Φ(B − shift σ) − Φ(A − shift σ)), exact in the tails too."""
    low, high = (torch.special.log_ndtr((end - mu) / sigma - shift * sigma) for end in (LOW, HIGH))
    mass: Tensor = high + torch.log1p(-(low - high).exp())
    return mass


def moments(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """E z and the signal-to-noise ratio of the truncated log-normal distribution."""
    sigma = log_sigma.exp()
    whole = _log_mass(mu, sigma, 0)
    first = (mu + sigma.square() / 2 + _log_mass(mu, sigma, 1) - whole).exp()
    second = (2 * mu + 2 * sigma.square() + _log_mass(mu, sigma, 2) - whole).exp()
    return first, first / (second - first.square()).clamp(min=1e-12 * first.square() + 1e-30).sqrt()


def log_normal_kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL of the truncated log-normal from the log-uniform distribution on the same interval.

    >>> wide = log_normal_kl(torch.tensor(-10.0).double(), torch.tensor(6.0).double())  # nearly uniform in log z
    >>> abs(wide.item()) < 1e-3
    True
    """
    sigma = log_sigma.exp()
    ends = [(end - mu) / sigma for end in (LOW, HIGH)]
    weighted = [x * (-x.square() / 2).exp() / math.sqrt(2 * math.pi) for x in ends]
    log_mass = _log_mass(mu, sigma, 0)
    slope = (weighted[0] - weighted[1]) / 2 * (-log_mass).exp()
    entropy = 0.5 * math.log(2 * math.pi * math.e) + log_sigma + log_mass + slope
    return math.log(HIGH - LOW) - entropy


def structured_bayesian(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("weight of the KL term; 1: the paper's bound", gt=0, le=1000)] = 1.0,
    warm_up: Annotated[float, about("share of the steps over which that weight grows", ge=0, le=1)] = 0.5,
    lr: Annotated[float, about("Adam's learning rate of μ and log σ", gt=0, le=10)] = 0.03,
) -> Sparsifier:
    """Train with log-normal noise on every channel."""
    channels = gated_channels(network)
    law = LogNormal(channels, strength / len(network.task.splits.train), warm_up)
    return Gates(network, channels, law, lr, f"structured-bayesian {strength} {warm_up} {lr}")
