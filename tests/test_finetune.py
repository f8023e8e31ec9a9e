"""Training that goes on from a checkpoint as if it had not stopped."""

import copy
import math

import pytest
import torch
from torch import nn

from amc.config import DataConfig
from amc.errors import BundleError, ModelError
from amc.task import evaluate, load_data, make_task
from amc.train.trainer import Plan, one_cycle, soft_targets, train

PLAN = Plan(12, 0.05, 16, 5e-4, 0.5, 4.0, seed=3)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    return make_task("small", model, load_data(DataConfig()), torch.device("cpu"))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def test_going_on_from_a_checkpoint_is_not_stopping(task, tmp_path, monkeypatch):
    whole = train(copy.deepcopy(task.model), task, PLAN, task.model)
    monkeypatch.setattr("amc.train.trainer.CHECKPOINT_SECONDS", 0.0)
    path, stopped = tmp_path / "checkpoint.pt", copy.deepcopy(task.model)

    def stop(share: float, loss: float) -> None:
        if share > 0.55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, task, PLAN, task.model, path, stop)
    steps = []
    resumed = train(copy.deepcopy(task.model), task, PLAN, task.model, path, lambda share, _: steps.append(share))
    assert len(steps) == 6  # the seventh step was done but not saved
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_a_checkpoint_of_another_plan_is_not_used(task, tmp_path):
    path = tmp_path / "checkpoint.pt"
    train(copy.deepcopy(task.model), task, PLAN, None, path)
    steps = []
    other = Plan(3, 0.05, 16, 5e-4, 0.5, 4.0, seed=4)
    train(copy.deepcopy(task.model), task, other, None, path, lambda share, _: steps.append(share))
    assert len(steps) == 3


def test_a_damaged_checkpoint_is_one_line(task, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(BundleError, match="is damaged"):
        train(copy.deepcopy(task.model), task, PLAN, None, path)


def test_training_helps(task):
    before = evaluate(task.model, task, task.splits.search)[0]
    after = evaluate(train(copy.deepcopy(task.model), task, PLAN), task, task.splits.search)[0]
    assert after < before


def test_divergence_is_told(task):
    with pytest.raises(ModelError, match="training diverged in step"):
        train(copy.deepcopy(task.model), task, Plan(50, 1e30, 16, 0.0, 0.0, 4.0, 0))


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [one_cycle(step, 99) for step in range(99)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 19
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 0.001


def test_soft_targets_by_hand():
    student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.e)  # softened by 2
    expected = 4 * ((1 - p) * math.log((1 - p) / p) + p * math.log(p / (1 - p)))
    assert float(soft_targets(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(soft_targets(student, student, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_tiny_weights_are_flushed(task):
    model = copy.deepcopy(task.model)
    with torch.no_grad():
        model[0].weight[0] = 1e-39
    trained = train(model, task, Plan(0, 0.05, 16, 0.0, 0.0, 4.0, 0))
    assert bool((trained[0].weight[0] == 0).all())
