"""Weights from early in a training, kept for weight rewinding (`amc.train.recover_weights`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from amc.train.hooks import Hook, Step


@dataclass(frozen=True)
class EarlyWeights(Hook):
    """Hands the network over once, after a ``share`` of the steps; after the first one at least."""

    share: float
    keep: Callable[[nn.Module], None] = field(repr=False)

    def step_of(self, steps: int) -> int:
        """The number of the step after which the weights are kept, from 0.

        >>> EarlyWeights(0.1, print).step_of(50), EarlyWeights(0.001, print).step_of(50)
        (4, 0)
        """
        return max(1, round(self.share * steps)) - 1

    def after_step(self, step: Step) -> None:
        """Hand the network over where this is the step."""
        if step.number == self.step_of(step.steps):
            self.keep(step.model)
