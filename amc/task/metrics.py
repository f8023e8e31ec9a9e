"""Objectives: a loss to minimise and a metric to report, both per sample."""

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
    """A loss and a metric. Both take the network's outputs and the targets, and return one number per sample, ``[N]``.

    The metric is in [0, 1], and higher is better; ``1 - metric`` is AMC's Error.

    >>> CLASSIFICATION.metric(torch.tensor([[0.1, 0.9]]), torch.tensor([1]))
    tensor([1.])
    """

    name: str
    """Name of the metric in reports."""
    loss: PerSample
    metric: PerSample
    logits: Callable[[Any], Tensor] | None = None
    """Extracts the logits, with classes along axis 1, from the outputs; needed for distillation from the original.
    None: no distillation."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not callable(self.loss) or not callable(self.metric):
            raise ConfigError("an amc.Objective has a name, a loss and a metric: Objective('accuracy', loss, metric).")

    def vectors(self, outputs: Any) -> Tensor | None:
        """The logits ``[N, K]`` if there is one vector per sample, rather than one per pixel; else None."""
        found = None if self.logits is None else self.logits(outputs)
        return found if found is not None and found.ndim == 2 else None

    def check(self, model: str, outputs: Any, targets: Nested, classes: int | None) -> None:
        """Raise ModelError or DataError if the network's outputs and the targets do not match."""
        found = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        if not all(bool(torch.isfinite(leaf).all()) for leaf in found):
            raise ModelError(f"{model} returns NaN or infinity on the first samples of the search split.")
        if self.logits is not None:
            self._check_logits(model, outputs, classes)
        count = nested.length(targets)
        for word, function in (("losses", self.loss), ("metrics", self.metric)):
            try:
                values = function(outputs, targets)
                wrong = list(values.shape) != [count] or not bool(torch.isfinite(values).all())
                reason = f"the {word} have shape {list(values.shape)}, not one finite number per sample ([{count}])"
            except Exception as error:  # noqa: BLE001  (a user's function may raise anything)
                wrong, reason = True, first_line(error)
            if wrong:
                kinds = ", ".join(f"{leaf.dtype} of shape {list(leaf.shape)}" for leaf in nested.leaves(targets))
                remedy = ". Pass an amc.Objective whose loss and metric accept them." if self is CLASSIFICATION else ""
                raise DataError(
                    f"the targets ({kinds}) do not match {model}'s outputs {_shapes(outputs)}: {reason}{remedy}"
                )

    def _check_logits(self, model: str, outputs: Any, classes: int | None) -> None:
        assert self.logits is not None
        try:
            logits = self.logits(outputs)
        except Exception as error:
            raise ModelError(f"{model} has no logits for {self.name}: {first_line(error)}") from error
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"{model} returns a {type(logits).__name__}, but must return a tensor of logits for {self.name}: "
                "pass an objective whose loss and metric accept its outputs."
            )
        if classes is not None and (logits.ndim < 2 or logits.shape[1] < classes):
            raise DataError(f"{model} has outputs of shape {list(logits.shape)}, but the data have {classes} classes.")


def _shapes(outputs: Any) -> str:
    """The shape of a tensor, or the shapes in a nested structure, as text."""
    if isinstance(outputs, Tensor):
        return str(list(outputs.shape))
    shapes = [str(list(leaf.shape)) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return f"({type(outputs).__name__} of {', '.join(shapes) or 'no tensors'})"


def load_objective(name: str) -> Objective:
    """An objective by its name or from ``file.py:factory``. Raises ConfigError."""
    if name == "classification":
        return CLASSIFICATION
    if not is_plugin(name):
        raise ConfigError(f"unknown objective '{name}'.{did_you_mean(name, ['classification', 'file.py:factory'])}")
    found = made_by_plugin(name, ConfigError)
    if not isinstance(found, Objective):
        raise ConfigError(f"{name} gave a {type(found).__name__}, but must give an amc.Objective.")
    return found


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy ``[N]`` of logits ``[N, K]`` and classes ``[N]``, in nats."""
    return F.cross_entropy(outputs.float(), targets, reduction="none")


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Correctness ``[N]``: 1 if the largest logit is that of the class, else 0."""
    return (outputs.argmax(1) == targets).float()


CLASSIFICATION = Objective("accuracy", cross_entropy, top1, logits=lambda outputs: outputs)
