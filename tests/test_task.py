"""A task is checked before anything is searched; the score is the mean over a split."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Net
from torch import Tensor, nn

from amc.config import DataConfig
from amc.errors import AmcError, DataError, ModelError
from amc.task import Task, batches, evaluate, load_data, make_task
from amc.task.metrics import cross_entropy, top1
from amc.task.models import build_model

SPLITS = load_data(DataConfig(calibration=50, search=103))
CPU = torch.device("cpu")


def task_of(model: nn.Module) -> Task:
    return make_task("net", model, SPLITS, CPU)


def constant(logits: list[float]) -> nn.Module:
    """The same logits for every image."""
    return Net(lambda m, x: m.logits.expand(len(x), -1), logits=nn.Parameter(torch.tensor(logits)))


def test_a_good_task() -> None:
    model = build_model("resnet8", False, 1, 10).train()
    task = task_of(model)
    assert task.model is model
    assert not model.training
    assert task.example.shape == (1, 1, 8, 8)
    assert torch.equal(task.example, SPLITS.search.fetch(torch.tensor([0]))[0])


def poisoned(key: str, value: float) -> nn.Module:
    model = build_model("resnet8", False, 1, 10)
    model.state_dict()[key].view(-1)[0] = value
    return model


def _three_channels(x: Tensor) -> Tensor:
    assert x.shape[1] == 3, "three channels, please"
    return x


LINEAR = nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: poisoned("layer2.0.conv1.weight", math.nan), ModelError, "NaN or infinity in 'layer2.0.conv1.weight'"),
        (lambda: poisoned("bn1.running_var", math.inf), ModelError, "NaN or infinity in 'bn1.running_var'"),
        (lambda: nn.Flatten(), ModelError, "has no parameters"),
        (lambda: build_model("resnet8", False, 3, 10), DataError, r"does not take these inputs of shape \[1, 8, 8\]"),
        (lambda: nn.Linear(3, 10), DataError, "does not take these inputs"),
        (lambda: Net(lambda m, x: _three_channels(x), a=LINEAR), DataError, "three channels, please"),
        (
            lambda: Net(lambda m, x: [m.a(x.flatten(1))], a=LINEAR),
            ModelError,
            "returns a list, but must return a tensor",
        ),
        (lambda: Net(lambda m, x: m.a(x.flatten(1)) / 0, a=LINEAR), ModelError, "returns NaN or infinity"),
        (lambda: build_model("resnet8", False, 1, 9), DataError, r"shape \[64, 9\], but the data have 10 classes"),
        (lambda: Net(lambda m, x: m.a(x.flatten(1)).sum(1), a=LINEAR), DataError, "but the data have 10 classes"),
    ],
)
def test_what_does_not_work_is_told(make: Callable[[], nn.Module], error: type[AmcError], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        task_of(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "lengths"), [(50, [50, 50, 3]), (103, [103]), (200, [103])])
def test_batches(size: int, lengths: list[int]) -> None:
    found = list(batches(SPLITS.search, size))
    assert [len(images) for images, _ in found] == [len(labels) for _, labels in found] == lengths
    expected = SPLITS.search.fetch(torch.arange(103))
    assert torch.equal(torch.cat([images for images, _ in found]), expected[0])
    assert torch.equal(torch.cat([labels for _, labels in found]), expected[1])


@pytest.mark.parametrize("batch_size", [1, 10, 250])
def test_evaluation_is_the_mean_over_the_split(batch_size: int) -> None:
    """Logit ln 11 for one class and 0 for nine: its probability is 0.55, the others' 0.05."""
    task = task_of(constant([0.0] * 4 + [math.log(11)] + [0.0] * 5))
    labels = SPLITS.search.fetch(torch.arange(103))[1]
    share = (labels == 4).double().mean().item()
    loss, metric = evaluate(task.model, task, SPLITS.search, batch_size)
    assert metric == pytest.approx(share, abs=1e-12)
    assert loss == pytest.approx(-share * math.log(0.55) - (1 - share) * math.log(0.05), rel=1e-6)


def test_objectives_per_sample() -> None:
    outputs, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1, 0])
    losses = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(3))]
    assert cross_entropy(outputs, targets).tolist() == pytest.approx(losses)
    assert top1(outputs, targets).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (torch.full((103,), 10), "do not match net's outputs"),
        (torch.zeros(103, 2, dtype=torch.long), "do not match net's outputs"),
        (torch.full((103, 10), torch.nan), "losses have shape"),
        (None, "must be tensors"),
        (ValueError("no\nlabels"), "cannot be read: ValueError: no$"),
    ],
)
def test_targets_that_do_not_fit(targets: Any, told: str) -> None:
    """Out of range, of another shape, not a number, no tensor, or not to be had."""

    class Search:
        def __len__(self) -> int:
            return 103

        def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Tensor, Any]:
            if isinstance(targets, Exception):
                raise targets
            images, _ = SPLITS.search.fetch(indices)
            return images, None if targets is None else targets[indices]

    splits = dataclasses.replace(SPLITS, search=Search())
    with pytest.raises(DataError, match=told) as caught:
        make_task("net", build_model("resnet8", False, 1, 10), splits, CPU)
    assert "\n" not in str(caught.value)


def test_half_precision_logits_are_judged_in_single() -> None:
    outputs: Any = torch.tensor([[2.0, 0.0]], dtype=torch.bfloat16)
    assert cross_entropy(outputs, torch.tensor([0])).dtype == torch.float32
