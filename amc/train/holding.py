"""Training within the settings of a policy, where gradients would lead out of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from amc.operators.compose import hold_settings, needs_holding
from amc.operators.operator import PolicySetting
from amc.operators.registry import Operators
from amc.train.hooks import Hook, Step


class HeldSettings(Hook):
    """Brings the network back to its settings after every step: projected gradient descent."""

    def __init__(self, settings: Mapping[str, PolicySetting], operators: Operators) -> None:
        self._settings, self._operators = dict(settings), operators

    def after_step(self, step: Step) -> None:
        """See `amc.operators.operator.CompressionOperator.hold`."""
        self.apply(step.model)

    def after_training(self, model: nn.Module) -> None:
        """Other hooks may have put other weights there, as averages."""
        self.apply(model)

    def apply(self, model: nn.Module) -> None:
        """Bring a network back to the settings now."""
        hold_settings(model, self._settings, self._operators)


def held(settings: Mapping[str, PolicySetting], operators: Operators) -> list[HeldSettings]:
    """The hooks that training within ``settings`` needs: none where no operator's settings can be lost in it."""
    return [HeldSettings(settings, operators)] if needs_holding(operators) else []
