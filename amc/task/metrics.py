"""What is minimised in training and what is reported: a loss and a metric, both per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from amc.errors import ConfigError, DataError, ModelError, did_you_mean, first_line
from amc.runtime.plugins import is_plugin, made_by_plugin
from amc.task import nested
from amc.task.nested import Nested

PerSample = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss and a metric. Both take what the network gives and the targets, and give one number a sample, ``[N]``.

    The metric lies in [0, 1] and higher is better; ``1 - metric`` is AMC's Error.
    """

    name: str
    """The metric's name, for people."""
    loss: PerSample
    metric: PerSample
    logits: Callable[[Any], Tensor] | None = None
    """Picks the logits, classes along axis 1, out of what the network gives: with them the original teaches by soft
    targets (distillation). None: no distillation."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not callable(self.loss) or not callable(self.metric):
            raise ConfigError("an amc.Objective has a name, a loss and a metric: Objective('accuracy', loss, metric).")

    def vectors(self, outputs: Any) -> Tensor | None:
        """The logits ``[N, K]`` where there is one vector of them a sample, and not one of every pixel."""
        found = None if self.logits is None else self.logits(outputs)
        return found if found is not None and found.ndim == 2 else None

    def check(self, model: str, outputs: Any, targets: Nested, classes: int | None) -> None:
        """Raise where the network's output and the targets cannot belong together."""
        found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if not all(bool(torch.isfinite(leaf).all()) for leaf in found):
            raise ModelError(f"{model} gives NaN or infinity on the first samples of the search split.")
        if self.logits is not None:
            self._check_logits(model, outputs, classes)
        count = nested.length(targets)
        for word, function in (("losses", self.loss), ("metrics", self.metric)):
            try:
                values = function(outputs, targets)
                wrong = list(values.shape) != [count] or not bool(torch.isfinite(values).all())
                reason = f"they give {word} of shape {list(values.shape)}, not one finite number a sample ([{count}])"
            except Exception as error:  # noqa: BLE001  (a user's function throws what it likes)
                wrong, reason = True, first_line(error)
            if wrong:
                kinds = ", ".join(f"{leaf.dtype} of shape {list(leaf.shape)}" for leaf in nested.leaves(targets))
                way_out = ". Pass an amc.Objective whose loss and metric take them." if self is CLASSIFICATION else ""
                raise DataError(
                    f"the targets ({kinds}) do not go with {model}'s outputs {_told(outputs)}: {reason}{way_out}"
                )

    def _check_logits(self, model: str, outputs: Any, classes: int | None) -> None:
        assert self.logits is not None
        try:
            logits = self.logits(outputs)
        except Exception as error:
            raise ModelError(f"{model} gives no logits for {self.name}: {first_line(error)}") from error
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"{model} returns a {type(logits).__name__}, but must return a tensor of logits for {self.name}: "
                "pass an objective whose loss and metric take what it returns."
            )
        if classes is not None and (logits.ndim < 2 or logits.shape[1] < classes):
            raise DataError(
                f"{model} gives outputs of shape {list(logits.shape)}, but the data have {classes} classes."
            )


def _told(outputs: Any) -> str:
    """The shape of a tensor, or of the tensors in a structure."""
    if isinstance(outputs, Tensor):
        return str(list(outputs.shape))
    shapes = [str(list(leaf.shape)) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return f"({type(outputs).__name__} of {', '.join(shapes) or 'no tensors'})"


def load_objective(name: str) -> Objective:
    """An objective by name, or what ``file.py:factory`` gives. Raises ConfigError."""
    if name == "classification":
        return CLASSIFICATION
    if not is_plugin(name):
        raise ConfigError(f"unknown objective '{name}'.{did_you_mean(name, ['classification', 'file.py:factory'])}")
    found = made_by_plugin(name, ConfigError)
    if not isinstance(found, Objective):
        raise ConfigError(f"{name} gave a {type(found).__name__}, but must give an amc.Objective.")
    return found


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits ``[N, K]`` against classes ``[N]``, in nats, one number a sample."""
    return F.cross_entropy(outputs.float(), targets, reduction="none")


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the class, else 0: ``[N]``."""
    return (outputs.argmax(1) == targets).float()


CLASSIFICATION = Objective("accuracy", cross_entropy, top1, logits=lambda outputs: outputs)
