"""Exponential moving average of the weights (Polyak & Juditsky 1992; as used by Tarvainen & Valpola 2017,
arXiv:1703.01780, section 3):

    θ̄_t = d_t θ̄_{t-1} + (1 - d_t) θ_t,    d_t = min(d, (1 + t) / (10 + t)),    t = 1, 2, …

The decay d_t grows with the steps, so a short training is averaged over its last tenth, however large d is. BatchNorm's
running statistics are averaged in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.train.hooks import Hook, Step


class WeightAverage(Hook):
    """Keeps the average, and leaves it as the network's weights when training ends."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``model``: before its first step. ``decay``: d, in [0, 1)."""
        self.decay, self.steps = decay, 0
        self.values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def after_step(self, step: Step) -> None:
        """Add a step's weights to the average. What does not change stays as it is to the bit."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in step.model.state_dict().items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def after_training(self, model: nn.Module) -> None:
        """Put the average into the network."""
        put(self.values, model)

    def state(self) -> Mapping[str, Any]:
        """The average and the number of its steps."""
        return {"decay": self.decay, "steps": self.steps, "values": self.values}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another network, or of another decay."""
        if state["decay"] != self.decay or type(state["steps"]) is not int:
            raise ValueError("the average is of another training")
        self.values, self.steps = checked(state["values"], self.values), state["steps"]


def put(values: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy ``values`` into the tensors of a network's state."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(values[name])


def checked(given: Any, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors that a file held. Raises ValueError unless they are finite and shaped as ``known``."""
    if not isinstance(given, dict) or given.keys() != known.keys():
        raise ValueError("weights of another network")
    for name, tensor in known.items():
        found = given[name]
        if not isinstance(found, Tensor) or found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(f"{name} is of another shape")
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    return {name: given[name].detach().clone() for name in known}
