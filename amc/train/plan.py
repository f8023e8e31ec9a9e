"""What a training is: how long, by which optimiser, at which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.config import FinetuneConfig
from amc.task import Task


class Rate(Protocol):
    """A learning-rate schedule."""

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak rate in ``step`` (from 0) of ``steps``."""
        ...


@dataclass(frozen=True)
class OneCycle:
    """Linear up over a share of the steps, then cosine down to 0 (Smith & Topin 2017, arXiv:1708.07120).

    >>> rate = OneCycle()
    >>> [round(rate(step, 9), 2) for step in (0, 1, 5, 8)]
    [0.5, 1.0, 0.5, 0.04]
    """

    warmup: float = 0.2

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak rate; see `Rate`."""
        place, top = (step + 1) / (steps + 1), self.warmup
        return place / top if place < top else 0.5 * (1 + math.cos(math.pi * (place - top) / (1 - top)))


@dataclass(frozen=True)
class Constant:
    """The peak rate in every step.

    >>> Constant()(5, 10)
    1.0
    """

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak rate; see `Rate`."""
        return 1.0


class Optimizer(Protocol):
    """Makes the optimiser of a training."""

    def __call__(self, model: nn.Module, plan: Plan) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum. Only matrices and kernels decay, not biases and scales."""

    momentum: float = 0.9
    nesterov: bool = True

    def __call__(self, model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
        """The optimiser of all parameters that are not frozen."""
        return torch.optim.SGD(_decayed(model, plan), lr=plan.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class Adam:
    """Adam with decoupled weight decay of matrices and kernels (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Its steps do not depend on the size of the loss, and it trains networks without normalisation.
    """

    def __call__(self, model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
        """The optimiser of all parameters that are not frozen."""
        return torch.optim.AdamW(_decayed(model, plan), lr=plan.lr)


def _decayed(model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """All parameters that are not frozen, in groups: matrices and kernels decay, biases and scales do not."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]


ADAM_RATE = 1 / 30
"""Adam's learning rate as a share of ``--lr``, which is for SGD: 0.03 becomes 0.001."""


@dataclass(frozen=True)
class Plan:
    """A training.

    >>> plan = Plan(steps=100, lr=0.03, batch_size=32, weight_decay=5e-4, distillation=0.0, temperature=4.0, seed=0)
    >>> plan.rate, plan.optimizer
    (OneCycle(warmup=0.2), Sgd(momentum=0.9, nesterov=True))
    """

    steps: int
    lr: float
    """Peak learning rate."""
    batch_size: int
    weight_decay: float
    distillation: float
    """Weight of the teacher's soft targets in the loss, in [0, 1]; the loss by labels has the rest."""
    temperature: float
    seed: int
    precision: str = "float32"
    """``float32``, ``channels_last`` (float32) or ``bfloat16`` (with channels_last)."""
    label_smoothing: float = 0.0
    """Share of every label that is spread evenly over all classes."""
    rate: Rate = field(default_factory=OneCycle)
    optimizer: Optimizer = field(default_factory=Sgd)


def make_plan(config: FinetuneConfig, task: Task, epochs: float, seed: int) -> Plan:
    """The plan for so many epochs over the training split."""
    batch = min(config.batch_size, len(task.splits.train))
    steps = math.ceil(epochs * (len(task.splits.train) // batch))
    adam = _wants_adam(task)
    return Plan(
        steps,
        config.lr * ADAM_RATE if adam else config.lr,
        batch,
        config.weight_decay,
        config.distillation,
        config.temperature,
        seed,
        label_smoothing=config.label_smoothing,
        optimizer=Adam() if adam else Sgd(),
    )


def _wants_adam(task: Task) -> bool:
    """Whether ``--lr``, which is for SGD and networks with BatchNorm, does not fit.

    That is so for transformers and other networks with LayerNorm only, and for tasks without labels whose loss can be
    of any size or whose network has no BatchNorm.
    """
    modules, objective = list(task.model.modules()), task.objective
    if any(isinstance(module, _BatchNorm) for module in modules):
        return objective.without_labels and objective.logits is None
    return objective.without_labels or any(isinstance(module, nn.LayerNorm | nn.RMSNorm) for module in modules)


def asked_precision(config: FinetuneConfig) -> str | None:
    """The plan's precision that the user asks for; None where the faster one is to be found."""
    return {"float32": "channels_last", "bfloat16": "bfloat16"}.get(config.precision)
