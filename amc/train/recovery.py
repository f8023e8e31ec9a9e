"""Recoveries: what a pruned network is trained from, and how, so that it becomes good again.

A recovery is a function ``(pruned, plan) -> Recovered``: the network to start from and the training that follows. It
trains nothing itself, so every recovery resumes after an interruption, and the same seed gives the same weights. Its
settings are keyword-only parameters (`amc.runtime.registry`). A new one is a file beside ``recover_*.py``, and a line
in the table.

Soft targets of the original (``--distillation``) come on top of any of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from amc.errors import ConfigError
from amc.runtime.registry import Entry, FunctionEntry, Registry, options
from amc.train.hooks import Hook
from amc.train.plan import Plan

NO_TRAINING = "none"


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned network before its recovery, and what it comes from."""

    model: nn.Module
    """Re-solved, trainable, and the recovery's to change. What must stay as it is does not require gradients."""
    original: nn.Module
    """Before pruning. It is not to be changed."""
    cut: Callable[[nn.Module], nn.Module]
    """A copy of a network of the original's structure, pruned in the same way, its weights not re-solved."""


@dataclass(frozen=True, eq=False)
class Recovered:
    """Where a recovery starts, and how it trains."""

    model: nn.Module
    """With tensors of the same names and shapes as the pruned network's."""
    plan: Plan
    hooks: Sequence[Hook] = ()


class Recovery(Protocol):
    """Says how a pruned network is trained. ``plan`` is the training that the configuration describes."""

    def __call__(self, pruned: Pruned, plan: Plan, **settings: Any) -> Recovered: ...


def finetune(pruned: Pruned, plan: Plan) -> Recovered:
    """Train the weights that are left, by the configuration's one cycle."""
    return Recovered(pruned.model, plan)


def no_training(pruned: Pruned, plan: Plan) -> Recovered:
    """Leave the pruned network as it was re-solved."""
    return Recovered(pruned.model, replace(plan, steps=0))


RECOVERIES: Registry[Recovery] = Registry("recovery", "amc.recoveries", (
    FunctionEntry("finetune", "train the weights that are left", "amc.train.recovery:finetune"),
    FunctionEntry(NO_TRAINING, "no training: the pruned network as it was re-solved", "amc.train.recovery:no_training"),
    FunctionEntry("rewind-lr", "train the weights that are left by the original's learning rates, from the peak down",
                  "amc.train.recover_rates:rewind_rates", "Renda et al. 2020, arXiv:2003.02389"),
    FunctionEntry("rewind-weights", "go back to weights from early in the original's training, and train those",
                  "amc.train.recover_weights:rewind_weights", "Frankle & Carbin 2019, arXiv:1803.03635"),
    FunctionEntry("scratch", "draw all weights anew, and train those",
                  "amc.train.recover_scratch:scratch", "Liu et al. 2019, arXiv:1810.05270"),
))  # fmt: skip


def recoveries() -> dict[str, Entry[Recovery]]:
    """All recoveries by name.

    >>> list(recoveries())[:2]
    ['finetune', 'none']
    """
    return RECOVERIES.entries()


def recovery_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recovery's ``settings`` as it takes them. Raises ConfigError where there is none, or a setting is wrong."""
    return options(f"recovery {name}", RECOVERIES.load(name), settings)


def recovered(name: str, settings: Mapping[str, Any], pruned: Pruned, plan: Plan) -> Recovered:
    """What a recovery gives for a pruned network.

    Raises ConfigError where one of the user's own fails, or gives a network of another size.
    """
    given = recovery_settings(name, settings)
    wanted = _shapes(pruned.model)
    with RECOVERIES.guarded(name):
        found = RECOVERIES.load(name)(pruned, plan, **given)
        shapes = _shapes(found.model)
    if shapes != wanted:
        raise ConfigError(f"the recovery {name} gives a network that is not the pruned one's size.")
    return found


def try_recovery(name: str, settings: Mapping[str, Any], model: nn.Module, plan: Plan) -> None:
    """See that a recovery can be had of this network, with nothing removed. Raises AmcError."""
    recovered(name, settings, Pruned(copy.deepcopy(model), model, copy.deepcopy), plan)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
