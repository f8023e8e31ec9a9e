"""Selective weight decay (Tessier et al. 2022, Rethinking Weight Decay for Efficient Neural Network Pruning,
arXiv:2011.10520, equations 2 and 3).

    L = Σ l(f(x, W), y) + μ/2 ‖W‖² + a μ/2 ‖W*‖²,    a(s) = a_min (a_max / a_min)^(s / steps)

W* are the weights that would be pruned if the training ended now. Their decay grows exponentially, so they have
vanished at its end, and until then a weight can leave W* again.

A channel's score is the root mean square of its weights. Deviations: W* is the ``share`` of every site's channels with
the smallest scores, where the paper has one threshold; the decay of W* is an implicit step after the optimiser's,
w ← w / (1 + lr a μ), which never overshoots, where the paper adds a μ w to the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.channels import ChannelWeights
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier


class SelectiveDecay(Sparsifier):
    """Decays the least important channels ever faster."""

    def __init__(self, network: DenseNetwork, plan: Plan, share: float, decay: float, low: float, high: float) -> None:
        self._plan, self._share, self._decay, self._low, self._high = plan, share, decay, low, high
        self._weights = ChannelWeights.of(network.graph, network.model)

    def factor(self, step: Step) -> float:
        """1 / (1 + lr a μ) of a step."""
        a: float = self._low * (self._high / self._low) ** (step.number / step.steps)
        return 1 / (1 + self._plan.lr * self._plan.rate(step.number, step.steps) * a * self._decay)

    def after_step(self, step: Step) -> None:
        """Decay the channels that would be pruned now."""
        scores, factor = self.scores(step.model).values(), self.factor(step)
        self._weights.scale(step.model, [torch.where(least(own, self._share), factor, 1.0) for own in scores])

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """‖w‖ / √p of every channel."""
        return self._weights.root_mean_squares(model)

    def state(self) -> Mapping[str, Any]:
        """The settings: a training with others is another training."""
        return {"settings": [self._share, self._decay, self._low, self._high]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a training with other settings."""
        if state["settings"] != self.state()["settings"]:
            raise ValueError("other settings")


def least(scores: Tensor, share: float) -> Tensor:
    """Which channels are among the ``share`` with the smallest scores; at least one is not.

    >>> least(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5).tolist()
    [False, True, True, False]
    """
    count = min(len(scores) - 1, int(share * len(scores)))
    found = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    found[scores.argsort(stable=True)[:count]] = True
    return found


def selective_decay(
    network: DenseNetwork,
    plan: Plan,
    *,
    share: Annotated[float, about("share of every site's channels that decays", gt=0, lt=1)] = 0.5,
    decay: Annotated[float, about("μ, the decay that a multiplies", gt=0, le=1)] = 5e-4,
    low: Annotated[float, about("a at the first step", gt=0, le=1e9)] = 0.1,
    high: Annotated[float, about("a at the last step", gt=0, le=1e9)] = 4e4,
) -> Sparsifier:
    """Decay the channels that would be pruned, ever faster."""
    return SelectiveDecay(network, plan, share, decay, low, high)
