"""Variational dropout (Molchanov, Ashukha & Vetrov 2017, Variational Dropout Sparsifies Deep Neural Networks,
arXiv:1701.05369).

    q(w) = N(θ, σ²),  α = σ² / θ²,  p(|w|) ∝ 1/|w|
    L = E_q l(f(x, W), y) + c_t / N Σ_w KL(q(w) ‖ p(w))        equation 13; N: training samples

θ and log σ² are trained (additive noise, equation 12). Weights with log α > 3 are 0 in the end. A channel's score is
the mean of ½ log(1 + 1/α) over its weights: what they tell, in nats; weights of 0 count 0. c_t grows from 0 to 1.

Deviations: noise is drawn once a step (`weight_noise`); only weights of removable channels have it; σ has an optimiser
of its own; BatchNorm statistics are recomputed without the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from amc.reconstruction import recalibrate
from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.log_uniform import REMOVED, capacity, log_uniform_kl
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier
from amc.train.sparsify.weight_noise import WeightNoise, warmed


class VariationalDropout(Sparsifier):
    """Trains weights with noise, as much of it as they can stand."""

    changes_forward = True

    def __init__(self, network: DenseNetwork, strength: float, warm_up: float, lr: float) -> None:
        self._network, self._strength, self._warm_up, self._lr = network, strength, warm_up, lr
        self.noise = WeightNoise(network.graph, network.model, -8.0, lr)
        self._samples = len(network.task.splits.train)

    def before_step(self, step: Step) -> None:
        """Draw noisy weights."""
        self.noise.put()

    def penalty(self, step: Step) -> Tensor | None:
        """strength · c_t / N Σ KL."""
        total = torch.stack([log_uniform_kl(own).sum() for own in self.noise.log_alphas().values()]).sum()
        return self._strength * warmed(step, self._warm_up) / self._samples * total

    def after_step(self, step: Step) -> None:
        """Take the noise away, and train its variance."""
        self.noise.take()

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Mean of ½ log(1 + 1/α) over a channel's weights that are not 0."""
        told = {name: torch.where(own < REMOVED, capacity(own), 0.0).detach()
                for name, own in self.noise.log_alphas().items()}  # fmt: skip
        weights = self.noise.weights
        sums, sizes = weights.total_of(told, torch.abs), weights.total_of(told, torch.ones_like)
        return {name: own / size.clamp(min=1) for name, own, size in zip(weights.names, sums, sizes, strict=True)}

    def finish(self, model: nn.Module) -> None:
        """Set weights that are mostly noise to 0, and recompute BatchNorm statistics."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, own in self.noise.log_alphas().items():
                parameters[name][own >= REMOVED] = 0
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        recalibrate(model, norms, self._network.task)

    def state(self) -> Mapping[str, Any]:
        """The noise's variance, and the settings."""
        return {**self.noise.state(), "settings": [self._strength, self._warm_up, self._lr]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another training."""
        if state["settings"] != [self._strength, self._warm_up, self._lr]:
            raise ValueError("other settings")
        self.noise.restore(state)


def variational_dropout(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("weight of the KL term; 1: the paper's bound", gt=0, le=1000)] = 1.0,
    warm_up: Annotated[float, about("share of the steps over which that weight grows", ge=0, le=1)] = 0.5,
    lr: Annotated[float, about("Adam's learning rate of log σ²", gt=0, le=10)] = 0.05,
) -> Sparsifier:
    """Train with noise on every weight."""
    return VariationalDropout(network, strength, warm_up, lr)
