"""Training within the settings of a policy, where gradients would lead out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.operators.compose import hold_settings, needs_holding, straight_through
from amc.operators.operator import PolicySetting
from amc.operators.registry import Operators
from amc.train.averaging import checked
from amc.train.hooks import Hook, Step


class HeldSettings(Hook):
    """Brings the network back to its settings after every step: projected gradient descent.

    Parameters for which an operator asks for it are trained by the straight-through estimator: the gradient is that at
    the restricted values, and the step is added to unrestricted ones, so that small steps add up.
    """

    def __init__(self, settings: Mapping[str, PolicySetting], operators: Operators) -> None:
        self._settings, self._operators = dict(settings), operators
        self._names = frozenset(straight_through(settings, operators))
        self._free: dict[str, Tensor] = {}
        """Unrestricted values of these parameters."""
        self._held: dict[str, Tensor] = {}
        """Their values in the network before the step."""

    def after_step(self, step: Step) -> None:
        """See `amc.operators.operator.CompressionOperator.hold`."""
        with torch.no_grad():
            for name, parameter in self._of(step.model).items():
                self._free[name] += parameter - self._held[name]
                parameter.copy_(self._free[name])
        hold_settings(step.model, self._settings, self._operators)
        self._held = {name: parameter.detach().clone() for name, parameter in self._of(step.model).items()}

    def after_training(self, model: nn.Module) -> None:
        """Other hooks may have put other weights there, as averages."""
        hold_settings(model, self._settings, self._operators)

    def apply(self, model: nn.Module) -> None:
        """Bring a network back to the settings now, before its training."""
        self._free = {name: parameter.detach().clone() for name, parameter in self._of(model).items()}
        hold_settings(model, self._settings, self._operators)
        self._held = {name: parameter.detach().clone() for name, parameter in self._of(model).items()}

    def state(self) -> Mapping[str, Any]:
        """The unrestricted values, and those in the network."""
        return {"free": self._free, "held": self._held}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another network."""
        self._free, self._held = checked(state["free"], self._free), checked(state["held"], self._held)

    def _of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if name in self._names}


def held(settings: Mapping[str, PolicySetting], operators: Operators) -> list[HeldSettings]:
    """The hooks that training within ``settings`` needs: none where no operator's settings can be lost in it."""
    return [HeldSettings(settings, operators)] if needs_holding(operators) else []
