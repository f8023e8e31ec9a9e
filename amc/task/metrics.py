"""What is minimised in training and what is reported: a loss and a metric, both per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amc.errors import DataError, ModelError, first_line

PerSample = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss and a metric. Both take the network's output and the targets and give one number a sample, ``[N]``.

    The metric lies in [0, 1] and higher is better; ``1 - metric`` is AMC's Error.
    """

    name: str
    loss: PerSample
    metric: PerSample
    distils: bool = False
    """Whether axis 1 of the output holds logits, so that the original can teach by soft targets."""

    def check(self, model: str, outputs: Any, targets: Tensor, classes: int | None) -> None:
        """Raise where the network's output and the targets cannot belong together."""
        if not isinstance(outputs, Tensor):
            raise ModelError(f"{model} returns a {type(outputs).__name__}, but must return a tensor of logits.")
        if not bool(torch.isfinite(outputs).all()):
            raise ModelError(f"{model} gives NaN or infinity on the first images of the search split.")
        if classes is not None and (outputs.ndim < 2 or outputs.shape[1] < classes):
            raise DataError(
                f"{model} gives outputs of shape {list(outputs.shape)}, but the data have {classes} classes."
            )
        try:
            losses = self.loss(outputs, targets)
            wrong = list(losses.shape) != [len(targets)] or not bool(torch.isfinite(losses).all())
            reason = f"they give losses of shape {list(losses.shape)}"
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            wrong, reason = True, first_line(error)
        if wrong:
            shape = f"{targets.dtype} of shape {list(targets.shape)}"
            raise DataError(f"the targets ({shape}) do not go with {model}'s outputs {list(outputs.shape)}: {reason}")


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits ``[N, K]`` against classes ``[N]``, in nats, one number a sample."""
    return F.cross_entropy(outputs.float(), targets, reduction="none")


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the class, else 0: ``[N]``."""
    return (outputs.argmax(1) == targets).float()


CLASSIFICATION = Objective("accuracy", cross_entropy, top1, distils=True)
