"""Weights with Gaussian noise of their own: w = θ + σ ε, with a σ for every weight that is trained beside θ.

The noise is drawn once for all samples of a step. (The local reparametrisation of Kingma et al. 2015, arXiv:1506.02557,
draws activations for every sample instead, which varies less, but needs a forward pass of the layers' own.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.graph.sites import Graph
from amc.train.averaging import checked
from amc.train.hooks import Step
from amc.train.sparsify.channels import ChannelWeights


class WeightNoise:
    """Puts noise on the weights of a network's channels, step by step."""

    def __init__(self, graph: Graph, model: nn.Module, log_variance: float, lr: float) -> None:
        """``log_variance``: log σ² before training. ``lr``: Adam's rate for it."""
        self.weights = ChannelWeights.of(graph, model)
        parameters = dict(model.named_parameters())
        held = sorted({s.tensor for group in self.weights.slots for s in group if parameters[s.tensor].ndim > 1})
        self.means: dict[str, nn.Parameter] = {name: parameters[name] for name in held}
        """θ by name: the network's own parameters."""
        self.log_variances = {name: torch.full_like(mean, log_variance).requires_grad_(True)
                              for name, mean in self.means.items()}  # fmt: skip
        self._optimizer = torch.optim.Adam(list(self.log_variances.values()), lr=lr)
        self._places = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in held}

    def put(self) -> None:
        """Replace the weights by noisy ones, through which gradients reach θ and σ."""
        self._optimizer.zero_grad(set_to_none=True)
        for name, mean in self.means.items():
            noise = torch.randn(mean.shape).to(mean)
            module, key = self._places[name]
            module._parameters[key] = mean + (self.log_variances[name] / 2).exp() * noise  # type: ignore[assignment]

    def take(self) -> None:
        """Put θ back, and train σ."""
        for name, mean in self.means.items():
            module, key = self._places[name]
            module._parameters[key] = mean
        self._optimizer.step()

    def log_alphas(self) -> dict[str, Tensor]:
        """log α = log σ² − log θ² by name, at most 8 either way."""
        return {name: (own - (self.means[name].square() + 1e-8).log()).clamp(-8, 8)
                for name, own in self.log_variances.items()}  # fmt: skip

    def state(self) -> Mapping[str, Any]:
        """log σ², and Adam's moments of it."""
        values = {name: own.detach().clone() for name, own in self.log_variances.items()}
        return {"values": values, "optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another network."""
        found = checked(state["values"], {name: own.detach() for name, own in self.log_variances.items()})
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, own in self.log_variances.items():
                own.copy_(found[name])


def warmed(step: Step, share: float) -> float:
    """The weight of the KL term: it grows from 0 to 1 over a ``share`` of the steps (Sønderby et al. 2016).

    >>> warmed(Step(nn.Identity(), 25, 100, 10), 0.5)
    0.5
    """
    return min(1.0, step.number / max(1.0, share * step.steps))
