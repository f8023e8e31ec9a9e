"""The hook that keeps a network sparse, and lets its weights change places by a rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ConfigError
from amc.train.averaging import checked
from amc.train.hooks import Hook, Step
from amc.train.sparse.density import counts
from amc.train.sparse.rules import SparseRule
from amc.train.sparse.state import SparseState

MOMENTUM = 0.9


class SparseTraining(Hook):
    """Trains a part of the weights of all matrices and kernels; the others are 0, and get no gradient.

    There are exactly as many as the density says, in every step. The places of the first are drawn by the seed.

    >>> from amc.train.sparse import sparse_rule
    >>> layer = nn.Linear(10, 10)
    >>> hook = SparseTraining(layer, sparse_rule("set", {}), 0.25, "uniform", seed=0)
    >>> int((layer.weight != 0).sum()), hook.weights
    (25, 25)
    """

    def __init__(self, model: nn.Module, rule: SparseRule, density: float, densities: str, seed: int) -> None:
        """``model`` is changed: weights that there are not become 0. Raises ConfigError where it has no matrices."""
        self._rule = rule
        self._parameters = {name: p for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
        if not self._parameters:
            raise ConfigError("--sparse needs matrices or kernels that can be trained, and this network has none.")
        kept = counts(densities, density, [tuple(p.shape) for p in self._parameters.values()])
        generator = torch.Generator().manual_seed(seed)
        self.masks = {name: _random_mask(p, count, generator)
                      for (name, p), count in zip(self._parameters.items(), kept, strict=True)}  # fmt: skip
        """By parameter which weights there are."""
        self._momentum = (
            {name: torch.zeros_like(p) for name, p in self._parameters.items()} if rule.needs_momentum else {}
        )
        self._gradients: dict[str, Tensor] = {}
        self._settings = [rule.share, rule.changes, rule.until, density, densities]
        self._handles = [p.register_hook(partial(self._see, name)) for name, p in self._parameters.items()]  # type: ignore[no-untyped-call]
        self._clear()

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def possible(self) -> int:
        """How many there would be in the dense network."""
        return sum(mask.numel() for mask in self.masks.values())

    def _see(self, name: str, gradient: Tensor) -> Tensor:
        """Keep a gradient, and give what the optimiser may use of it."""
        self._gradients[name] = gradient
        return gradient * self.masks[name]

    def after_step(self, step: Step) -> None:
        """Set what there is not to 0, and let weights change places where that is due."""
        zeros = {name: torch.zeros_like(p) for name, p in self._parameters.items() if name not in self._gradients}
        gradients = {**self._gradients, **zeros}
        for name, average in self._momentum.items():
            average.mul_(MOMENTUM).add_(gradients[name], alpha=1 - MOMENTUM)
        if self._rule.is_due(step.number, step.steps):
            self._change(gradients, self._rule.share_at(step.number, step.steps))
        self._gradients = {}
        self._clear()

    def _change(self, gradients: Mapping[str, Tensor], share: float) -> None:
        """Weights that are new start at 0."""
        weights = {name: p.detach() for name, p in self._parameters.items()}
        before, total = self.masks, self.weights
        self.masks = self._rule.change(SparseState(weights, before, gradients, self._momentum), share)
        if self.weights != total:
            raise ConfigError(f"the sparse rule leaves {self.weights} weights of {total}: it must grow what it drops.")
        with torch.no_grad():
            for name, mask in self.masks.items():
                self._parameters[name][mask & ~before[name]] = 0

    def _clear(self) -> None:
        with torch.no_grad():
            for name, mask in self.masks.items():
                self._parameters[name].mul_(mask)

    def after_training(self, model: nn.Module) -> None:
        """Let go of the network."""
        for handle in self._handles:
            handle.remove()

    def state(self) -> Mapping[str, Any]:
        """The masks, and momentum where the rule needs it."""
        masks = {name: mask.float() for name, mask in self.masks.items()}
        return {"settings": self._settings, "masks": masks, "momentum": dict(self._momentum)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another training."""
        masks = checked(state["masks"], {name: mask.float() for name, mask in self.masks.items()})
        if state["settings"] != self._settings or sum(int((m != 0).sum()) for m in masks.values()) != self.weights:
            raise ValueError("the masks are of another training")
        self._momentum = checked(state["momentum"], self._momentum)
        self.masks = {name: mask != 0 for name, mask in masks.items()}


def _random_mask(parameter: Tensor, count: int, generator: torch.Generator) -> Tensor:
    mask = torch.zeros(parameter.numel(), dtype=torch.bool)
    mask[torch.randperm(parameter.numel(), generator=generator)[:count]] = True
    return mask.reshape(parameter.shape).to(parameter.device)
