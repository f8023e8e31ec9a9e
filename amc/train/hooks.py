"""What may be done around the steps of a training, for penalties, masks and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Step:
    """Where a training is."""

    model: nn.Module
    number: int
    """From 0."""
    steps: int
    """Of the whole training."""
    per_epoch: int
    """Steps of an epoch."""

    @property
    def epoch(self) -> int:
        """From 0."""
        return self.number // self.per_epoch

    @property
    def ends_epoch(self) -> bool:
        """Whether it is an epoch's last step, or the training's."""
        return (self.number + 1) % self.per_epoch == 0 or self.number + 1 == self.steps


class Hook:
    """Does nothing; a subclass overrides what it needs.

    A checkpoint holds a hook's `state`, and what it is: the ``repr`` of a dataclass, the name of another class. Random
    numbers drawn inside a step depend on the seed and the step alone.
    """

    def before_step(self, step: Step) -> None:
        """Before the forward pass."""

    def penalty(self, step: Step) -> Tensor | None:
        """What is added to the loss (a scalar); None: nothing."""
        return None

    def after_step(self, step: Step) -> None:
        """After the optimiser's step, as to set weights to 0 again."""

    def after_epoch(self, step: Step) -> None:
        """After an epoch's last step."""

    def after_training(self, model: nn.Module) -> None:
        """Once all steps are done: what becomes of the trained network, in place. It is in evaluation mode."""

    def state(self) -> Mapping[str, Any]:
        """What must survive an interruption: tensors and numbers by name."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`."""
