"""Learning-compression (Carreira-Perpiñán & Idelbayev 2018, "Learning-Compression" Algorithms for Neural Net Pruning,
CVPR 2018, section 3; the quadratic-penalty form).

    min L(w)  such that  w = θ,  ‖θ‖₀ ≤ κ

    L step   w ← argmin L(w) + μ/2 ‖w − θ‖²      by the training's own steps
    C step   θ ← Π(w)                            keeps the κ largest, and sets the others to 0;  then μ ← a μ

A channel's score is the root mean square of its weights. Deviations: what Π keeps is the ``share`` of every site's
channels with the largest scores, where the paper keeps κ single weights; L steps have equal numbers of the training's
steps, and its learning rates; the paper starts from a trained network, here the first C step comes after a share of the
training (``start``). Its augmented Lagrangian needs L steps that nearly converge: with few steps in each, multipliers
grow until channels change places, and accuracy collapses, so they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from amc.runtime.registry import about
from amc.train.averaging import checked
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.channels import ChannelWeights, scale_slot
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier
from amc.train.sparsify.selective_decay import least


class LearningCompression(Sparsifier):
    """Pulls the weights towards those of a network without its least important channels."""

    def __init__(
        self, network: DenseNetwork, share: float, rounds: int, mu: float, growth: float, start: float
    ) -> None:
        self._weights, self._share, self._rounds = ChannelWeights.of(network.graph, network.model), share, rounds
        self._mu, self._growth, self._start, self.round = mu, growth, start, 0
        held = sorted({slot.tensor for group in self._weights.slots for slot in group})
        parameters = dict(network.model.named_parameters())
        self.compressed = {name: parameters[name].detach().clone() for name in held}
        """θ by parameter."""

    def penalty(self, step: Step) -> Tensor | None:
        """μ/2 ‖w − θ‖²; none before the first C step."""
        if self.round == 0:
            return None
        parameters, mu = dict(step.model.named_parameters()), self._mu * self._growth ** (self.round - 1)
        parts = [(parameters[name] - theta).square().sum() for name, theta in self.compressed.items()]
        return mu / 2 * torch.stack(parts).sum()

    def after_step(self, step: Step) -> None:
        """A C step where one is due: after the first part of the training, at equal distances, and at its end."""
        first = min(int(self._start * step.steps), step.steps - 1)
        done, rest = step.number - first, step.steps - first
        if done >= 0 and (done + 1) * self._rounds // rest > done * self._rounds // rest:
            self.compress(step.model)

    def compress(self, model: nn.Module) -> None:
        """The C step."""
        parameters = dict(model.named_parameters())
        self.compressed = {name: parameters[name].detach().clone() for name in self.compressed}
        for group, kept in zip(self._weights.slots, self._kept(model), strict=True):
            for slot in group:
                scale_slot(slot, self.compressed[slot.tensor], kept)
        self.round += 1

    def _kept(self, model: nn.Module) -> list[Tensor]:
        """1 for the channels of every site that Π keeps, else 0."""
        return [(~least(own, self._share)).float() for own in self.scores(model).values()]

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """‖w‖ / √p of every channel."""
        return self._weights.root_mean_squares(model)

    def finish(self, model: nn.Module) -> None:
        """w = θ: the channels that Π does not keep are 0."""
        self._weights.scale(model, self._kept(model))

    def state(self) -> Mapping[str, Any]:
        """θ, and how often it was found."""
        return {"settings": self._settings(), "round": self.round, "compressed": dict(self.compressed)}

    def _settings(self) -> list[float]:
        return [self._share, self._rounds, self._mu, self._growth, self._start]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another training."""
        if state["settings"] != self._settings() or type(state["round"]) is not int:
            raise ValueError("other settings")
        self.compressed, self.round = checked(state["compressed"], self.compressed), state["round"]


def learning_compression(
    network: DenseNetwork,
    plan: Plan,
    *,
    share: Annotated[float, about("share of every site's channels that is removed", gt=0, lt=1)] = 0.5,
    rounds: Annotated[int, about("C steps", ge=1, le=10**6)] = 20,
    mu: Annotated[float, about("μ after the first C step", gt=0, le=1000)] = 0.03,
    growth: Annotated[float, about("a, by which μ grows from round to round", ge=1, le=10)] = 1.2,
    start: Annotated[float, about("share of the steps before the first C step", ge=0, lt=1)] = 0.3,
) -> Sparsifier:
    """Train and compress by turns, until both agree."""
    return LearningCompression(network, share, rounds, mu, growth, start)
