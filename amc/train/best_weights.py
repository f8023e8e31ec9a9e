"""The best weights of a training: those of the step that scores best on the search split, which is read a few times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.train.averaging import WeightAverage, checked, put
from amc.train.hooks import Hook, Step

Score = Callable[[nn.Module], tuple[float, float]]
"""Loss and metric of a network in evaluation mode."""


def is_check(number: int, steps: int, checks: int) -> bool:
    """Whether a training of so many ``steps`` is checked after step ``number``: at equal distances, and at its end.

    >>> [number for number in range(10) if is_check(number, 10, 3)]
    [3, 6, 9]
    """
    return (number + 1) * checks // steps > number * checks // steps


class BestWeights(Hook):
    """Scores the network before the training and ``checks`` times along it, and leaves the best weights at its end.

    So no training ends with a network that scores worse than the one that it began with.
    """

    def __init__(self, model: nn.Module, score: Score, checks: int, average: WeightAverage | None = None) -> None:
        """With an ``average``, which is called before this hook, its weights are scored and kept."""
        self._score, self._checks, self._average = score, checks, average
        self._shapes = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self._weights: dict[str, Tensor] = {}
        self.scores: list[tuple[float, float]] = []
        """Loss and metric before the training, and at every check so far."""

    def before_step(self, step: Step) -> None:
        """Score the network as it is before the first step."""
        if step.number == 0:
            with torch.random.fork_rng(devices=[]):  # what is read must not change what the step draws
                self._check(step.model)

    def after_step(self, step: Step) -> None:
        """Score the network where a check is due."""
        if is_check(step.number, step.steps, self._checks):
            self._check(step.model)

    def _check(self, model: nn.Module) -> None:
        """Score a network, and keep its weights if it is the best so far."""
        network = copy.deepcopy(model).eval()
        if self._average is not None:
            put(self._average.values, network)
        self.scores.append(self._score(network))
        if best(self.scores) == len(self.scores) - 1:
            self._weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    def after_training(self, model: nn.Module) -> None:
        """Put the best weights into the network."""
        if self._weights:
            put(self._weights, model)

    def state(self) -> Mapping[str, Any]:
        """The scores and the best weights so far."""
        return {"checks": self._checks, "scores": [list(score) for score in self.scores], "weights": self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another training."""
        scores = [(float(loss), float(metric)) for loss, metric in state["scores"]]
        if state["checks"] != self._checks or bool(scores) != bool(state["weights"]):
            raise ValueError("the best weights are of another training")
        self._weights = checked(state["weights"], self._shapes) if scores else {}
        self.scores = scores


def best(scores: list[tuple[float, float]]) -> int:
    """The place of the best (loss, metric): the highest metric, of equal ones the lowest loss, then the last.

    >>> best([(0.5, 0.9), (0.4, 0.9), (0.1, 0.8)])
    1
    """
    return max(range(len(scores)), key=lambda place: (scores[place][1], -scores[place][0], place))
