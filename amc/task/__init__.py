"""A task: what is compressed, on which data, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.errors import AmcError, DataError, ModelError, first_line
from amc.task.data import Split, Splits, load_data
from amc.task.metrics import CLASSIFICATION, Objective
from amc.task.models import load_model

__all__ = [
    "Objective",
    "Split",
    "Splits",
    "Task",
    "batches",
    "evaluate",
    "load_data",
    "load_model",
    "make_task",
]


@dataclass(frozen=True, eq=False)
class Task:
    """What is compressed. The model is in evaluation mode, on its device, and is never changed."""

    name: str
    model: nn.Module
    splits: Splits
    objective: Objective
    device: torch.device

    @property
    def example(self) -> Tensor:
        """One image of the search split, ``[1, C, H, W]``, normalised, on the device."""
        image = self.splits.search.fetch(torch.tensor([0]))[0].to(self.device)
        return image.clone(memory_format=torch.contiguous_format)


def make_task(
    name: str, model: nn.Module, splits: Splits, device: torch.device, objective: Objective = CLASSIFICATION
) -> Task:
    """A task whose model has been seen to work on the data: right shapes, finite numbers, labels in range."""
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{name}: the weights hold NaN or infinity in '{key}'. Train it again, or pass other --weights."
            )
    if next(model.parameters(), None) is None:
        raise ModelError(f"{name}: the network has no parameters.")
    model = model.to(device).eval()
    task = Task(name, model, splits, objective, device)
    images, targets = _first_samples(splits.search)
    try:
        with torch.inference_mode():
            outputs = model(images.to(device))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = first_line(error)
        raise DataError(f"{name} does not take these images of shape {list(images.shape[1:])}: {reason}") from error
    objective.check(name, outputs, targets.to(device), splits.classes)
    return task


def _first_samples(split: Split, count: int = 64) -> tuple[Tensor, Tensor]:
    """Some samples, to see that they can be read. Whatever the user's dataset throws is told in one line."""
    try:
        images, targets = split.fetch(torch.arange(min(count, len(split))))
    except AmcError:
        raise
    except Exception as error:
        raise DataError(f"the data cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        raise DataError(f"the data give {type(images).__name__} and {type(targets).__name__}, but must give tensors.")
    return images, targets


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, ``size`` at a time: images ``[B, C, H, W]`` normalised, and targets ``[B, ...]``."""
    for start in range(0, len(split), size):
        yield split.fetch(torch.arange(start, min(start + size, len(split))))


def evaluate(model: nn.Module, task: Task, split: Split, batch_size: int = 250) -> tuple[float, float]:
    """Mean loss and mean metric of ``model`` (in evaluation mode, on the task's device) over ``split``."""
    loss, metric = 0.0, 0.0
    with torch.inference_mode():
        for images, targets in batches(split, batch_size):
            outputs, truth = model(images.to(task.device)), targets.to(task.device)
            loss += float(task.objective.loss(outputs, truth).double().sum())
            metric += float(task.objective.metric(outputs, truth).double().sum())
    return loss / len(split), metric / len(split)
