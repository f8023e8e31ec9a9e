"""What the settings of training say beside the plan: on which samples, and with which hooks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from amc.config import FinetuneConfig
from amc.task import Task, evaluate
from amc.task.nested import Nested
from amc.task.splits import ImageSplit, Split
from amc.train.averaging import WeightAverage
from amc.train.best_weights import BestWeights
from amc.train.hooks import Hook
from amc.train.statistics import RecomputedStatistics


def training_task(config: FinetuneConfig, task: Task) -> Task:
    """The task with the samples that are trained on as its training split."""
    if config.images == "train":
        return task
    images = for_training(task.splits.calibration, task.splits.train)
    return replace(task, splits=replace(task.splits, train=images))


def training_hooks(config: FinetuneConfig, model: nn.Module, task: Task, checked: bool = True) -> list[Hook]:
    """The hooks that the settings ask for, for a training that starts from ``model``.

    ``checked``: whether the search split is read along the training, as the settings say.
    """
    hooks: list[Hook] = []
    average = WeightAverage(model, config.ema_decay) if config.ema_decay > 0 else None
    if average is not None:
        hooks.append(average)
    if checked and config.checks > 0:
        hooks.append(BestWeights(model, partial(evaluate, task=task, split=task.splits.search), config.checks, average))
    if config.recompute_statistics:
        hooks.append(RecomputedStatistics(task))
    return hooks


@dataclass(frozen=True, eq=False)
class Unaugmented:
    """A split that is read without augmentation, though it is trained on."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        return self.split.fetch(indices)


def for_training(split: Split, like: Split) -> Split:
    """A split to train on: augmented as ``like`` is where both are image splits, else read as it is."""
    if isinstance(split, ImageSplit) and isinstance(like, ImageSplit):
        return replace(split, augmentation=like.augmentation)
    return Unaugmented(split)
