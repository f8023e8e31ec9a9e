"""A task: the network to compress, its data, and the objective that scores it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from amc.errors import AmcError, DataError, ModelError, first_line
from amc.task import nested
from amc.task.checks import check_forward, check_training_step, prepared
from amc.task.data import load_data
from amc.task.datasets import check_classes
from amc.task.metrics import CLASSIFICATION, Objective, load_objective
from amc.task.models import load_model
from amc.task.nested import Nested
from amc.task.splits import Split, Splits
from amc.task.unlabelled import without_labels

__all__ = [
    "Objective",
    "Split",
    "Splits",
    "Task",
    "batches",
    "check_training",
    "evaluate",
    "load_data",
    "load_model",
    "load_objective",
    "make_task",
]

TRIED = 8
"""Number of samples in the trial training step."""


@dataclass(frozen=True, eq=False)
class Task:
    """A network with data and objective. The model is in evaluation mode, on its device, and is never modified."""

    name: str
    model: nn.Module
    splits: Splits
    objective: Objective
    device: torch.device
    batch: int = 250
    """Largest batch outside of training."""

    @property
    def example(self) -> Nested:
        """One sample of the search split, ``[1, ...]``, on the device."""
        sample = nested.to(self.splits.search.fetch(torch.tensor([0]))[0], self.device)
        return nested.mapped(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), sample)


def make_task(
    name: str, model: nn.Module, splits: Splits, device: torch.device, objective: Objective = CLASSIFICATION
) -> Task:
    """Create a task and check that the model works on the data: right shapes, finite outputs, labels in range."""
    try:
        model = prepared(model.eval() if isinstance(model, nn.Module) else model)
    except NotImplementedError as error:  # an exported program's module
        raise ModelError(f"{name}: the network has no evaluation mode: pass the module before its export.") from error
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"{name}: the weights hold NaN or infinity in '{key}'. Train it again, or pass other --weights."
            )
    if next(model.parameters(), None) is None:
        raise ModelError(f"{name}: the network has no parameters.")
    model = model.to(device)
    if not splits.labelled:
        splits, objective = _without_labels(name, model, splits, device, objective)
    task = Task(name, model, splits, objective, device)
    inputs, targets = _first_samples(splits.search)
    try:
        outputs = check_forward(name, model, nested.to(inputs, device))
    except AmcError:
        raise
    except Exception as error:  # a user's network may raise anything
        raise _not_taken(name, inputs, error) from error
    objective.check(name, outputs, nested.to(targets, device), splits.classes)
    if objective is CLASSIFICATION:
        for part in ("train", "calibration", "search", "test"):
            check_classes(part, getattr(splits, part), outputs.shape[1])
    return task


def _not_taken(name: str, inputs: Nested, error: Exception) -> DataError:
    """What a user is told whose network raises an error for the samples."""
    whole = any(not leaf.is_floating_point() for leaf in nested.leaves(inputs))
    hint = ". If they are to be numbers with fractions, cast them where the data are made: x.float()" if whole else ""
    return DataError(
        f"{name} does not take these inputs of shape {nested.shape(inputs)}: {first_line(error).rstrip('.')}{hint}"
    )


def _without_labels(
    name: str, model: nn.Module, splits: Splits, device: torch.device, objective: Objective
) -> tuple[Splits, Objective]:
    """See `amc.task.unlabelled.without_labels`. What a user's network raises becomes a DataError."""
    inputs, _ = _first_samples(splits.search)
    try:
        return without_labels(name, model, splits, device, objective)
    except AmcError:
        raise
    except Exception as error:
        raise _not_taken(name, inputs, error) from error


def check_training(task: Task) -> None:
    """Try one training step on a copy of the network. Raises ModelError or DataError in one line."""
    inputs, targets = (nested.to(given, task.device) for given in _first_samples(task.splits.train, TRIED))
    with torch.inference_mode():
        outputs = nested.call(task.model, nested.mapped(torch.clone, inputs))
    task.objective.check(task.name, outputs, targets, task.splits.classes)
    check_training_step(task.model, task.objective, inputs, targets)


def _first_samples(split: Split, count: int = 64) -> tuple[Nested, Nested]:
    """The first samples, to check that they can be read. Raises DataError for any exception in a user's dataset."""
    try:
        inputs, targets = split.fetch(torch.arange(min(count, len(split))))
    except AmcError:
        raise
    except Exception as error:
        raise DataError(f"the data cannot be read: {type(error).__name__}: {first_line(error)}") from error
    for given in (inputs, targets):
        if nested.nested(given) is None:
            raise DataError(
                f"the data contain a {type(given).__name__}, but must be tensors, or tuples or dicts of tensors."
            )
    return inputs, targets


def batches(split: Split, size: int) -> Iterator[tuple[Nested, Nested]]:
    """Yield the split in order, in batches of ``size``: inputs and targets, all ``[B, ...]``."""
    for start in range(0, len(split), size):
        yield split.fetch(torch.arange(start, min(start + size, len(split))))


def evaluate(model: nn.Module, task: Task, split: Split, batch_size: int | None = None) -> tuple[float, float]:
    """Mean loss and mean metric of ``model`` (in evaluation mode, on the task's device) over ``split``."""
    loss, metric = 0.0, 0.0
    with torch.inference_mode():
        for inputs, targets in batches(split, batch_size or task.batch):
            outputs, truth = nested.call(model, nested.to(inputs, task.device)), nested.to(targets, task.device)
            loss += float(task.objective.loss(outputs, truth).double().sum())
            metric += float(task.objective.metric(outputs, truth).double().sum())
    return loss / len(split), metric / len(split)
