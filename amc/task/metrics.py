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
    without_labels: bool = False
    """Whether the targets are the original's outputs, because the data have no labels."""
    projection: Callable[[Any, torch.Generator], Tensor] | None = None
    """If the loss is a squared distance from the original's outputs: a random projection of the outputs, summed over
    samples, whose squared gradient is twice the loss's curvature on average (`amc.reconstruction.sensitivity`)."""

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
    known = {"classification": CLASSIFICATION, "cosine": COSINE}
    if name in known:
        return known[name]
    if not is_plugin(name):
        raise ConfigError(f"unknown objective '{name}'.{did_you_mean(name, [*known, 'file.py:factory'])}")
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


def agreement(outputs: Tensor, targets: Tensor) -> Tensor:
    """Top-1 agreement ``[N]`` of logits with the original's, both ``[N, K]``."""
    return top1(outputs, targets.argmax(1))


def cross_entropy_with_original(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy ``[N]`` of logits ``[N, K]`` with the class that the original's logits name."""
    return cross_entropy(outputs, targets.argmax(1))


def cosine(outputs: Any, targets: Nested) -> Tensor:
    """Cosine ``[N]`` of the angle between two vectors for each sample, at least 0: all outputs, and the original's.

    >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    tensor([0.7071, 1.0000])
    """
    count = nested.length(targets)
    first, second = (
        torch.cat([leaf.flatten(1).float() for leaf in tree_leaves(value)
                   if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.shape[:1] == (count,)], 1)
        for value in (outputs, targets)
    )  # fmt: skip
    return F.cosine_similarity(first, second, 1, 1e-12).clamp(0, 1)


def squared_distance(outputs: Any, targets: Nested) -> Tensor:
    """Squared distance ``[N]`` of outputs from targets of their shape."""
    count = nested.length(targets)
    pairs = zip(tree_leaves(outputs), tree_leaves(targets), strict=True)
    return torch.stack([(a.float() - b.float()).square().reshape(count, -1).sum(1) for a, b in pairs]).sum(0)


AGREEMENT = Objective(
    "agreement with the original", cross_entropy_with_original, agreement, lambda outputs: outputs, without_labels=True
)
"""The objective of classifiers if the data have no labels; targets are the original's logits."""
COSINE = Objective("cosine similarity", squared_distance, cosine)
"""For networks whose outputs are embeddings; targets are vectors, or the original's outputs."""
