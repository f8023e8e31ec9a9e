"""Training that goes on from a checkpoint as if it had not stopped."""

import copy
import math
import zipfile
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from amc.config import DataConfig, FinetuneConfig
from amc.errors import ModelError
from amc.task import evaluate, load_data, make_task
from amc.train import Constant, Hook, OneCycle, Plan, Sgd, SparseNorms, Step, make_plan, train
from amc.train.distillation import soft_targets
from amc.train.plan import Adam

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


def not_finite(path):
    state = torch.load(path, weights_only=True)
    next(iter(state["model"].values())).fill_(float("nan"))
    torch.save(state, path)


def of_another_network(path):
    state = torch.load(path, weights_only=True)
    state["model"].popitem()
    torch.save(state, path)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))


DAMAGE = [lambda p: p.write_bytes(b"not a checkpoint"), lambda p: p.write_bytes(p.read_bytes()[:-200]), not_finite,
          of_another_network, bomb]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_a_damaged_checkpoint_held_is_done_again(task, tmp_path, damage):
    path, steps = tmp_path / "checkpoint.pt", []
    whole = train(copy.deepcopy(task.model), task, PLAN, None, path)
    damage(path)
    again = train(copy.deepcopy(task.model), task, PLAN, None, path, lambda share, _: steps.append(share))
    assert len(steps) == PLAN.steps
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))


def test_training_helps(task):
    before = evaluate(task.model, task, task.splits.search)[0]
    after = evaluate(train(copy.deepcopy(task.model), task, PLAN), task, task.splits.search)[0]
    assert after < before


def test_divergence_is_told(task):
    with pytest.raises(ModelError, match="training diverged in step"):
        train(copy.deepcopy(task.model), task, Plan(50, 1e30, 16, 0.0, 0.0, 4.0, 0))


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [OneCycle()(step, 99) for step in range(99)]
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


class Ledger(Hook):
    """Writes down what it is called for, and counts steps in its state."""

    def __init__(self):
        self.calls, self.count = [], 0

    def before_step(self, step):
        self.calls.append(("before", step.number))

    def penalty(self, step):
        self.calls.append(("penalty", step.number))

    def after_step(self, step):
        self.count += 1
        self.calls.append(("after", step.number))

    def after_epoch(self, step):
        self.calls.append(("epoch", step.epoch))

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


def test_hooks_are_called_around_every_step(task):
    """Two epochs of two steps, and one step of the third."""
    ledger = Ledger()
    batch = len(task.splits.train) // 2
    train(copy.deepcopy(task.model), task, replace(PLAN, steps=5, batch_size=batch), hooks=[ledger])
    steps = [[("before", n), ("penalty", n), ("after", n)] for n in range(5)]
    expected = [*steps[0], *steps[1], ("epoch", 0), *steps[2], *steps[3], ("epoch", 1), *steps[4], ("epoch", 2)]
    assert ledger.calls == expected


def test_hooks_that_do_nothing_change_nothing(task):
    plain = train(copy.deepcopy(task.model), task, PLAN, task.model)
    hooked = train(copy.deepcopy(task.model), task, PLAN, task.model, hooks=[Hook(), Ledger()])
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(hooked), strict=True))


@dataclass(eq=False)
class Noise(Hook):
    """A penalty that grows with what it has seen, and draws at random: all that a checkpoint must bring back."""

    strength: float = 0.01

    def __post_init__(self):
        self.seen = torch.zeros(())

    def penalty(self, step):
        return self.strength * self.seen * (step.model[0].weight * torch.rand(())).square().sum()

    def after_step(self, step):
        self.seen += step.model[0].weight.detach().abs().mean()

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


def test_the_state_of_hooks_is_in_the_checkpoint(task, tmp_path, monkeypatch):
    whole = train(copy.deepcopy(task.model), task, PLAN, hooks=[Noise()])
    monkeypatch.setattr("amc.train.trainer.CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "checkpoint.pt"

    def stop(share: float, loss: float) -> None:
        if share > 0.55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(task.model), task, PLAN, None, path, stop, [Noise()])
    steps = []
    other = train(copy.deepcopy(task.model), task, PLAN, None, path, lambda share, _: steps.append(share), [Noise()])
    assert len(steps) == 6
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(other), strict=True))


def test_a_checkpoint_of_other_hooks_is_not_used(task, tmp_path):
    path, steps = tmp_path / "checkpoint.pt", []
    train(copy.deepcopy(task.model), task, PLAN, None, path, hooks=[SparseNorms(0.1)])
    train(copy.deepcopy(task.model), task, PLAN, None, path, lambda share, _: steps.append(share), [SparseNorms(0.2)])
    assert len(steps) == PLAN.steps


def test_optimiser_and_rate_are_the_plans(task):
    """One step of plain SGD without decay: the weights fall by the rate times the gradient."""
    plan = replace(PLAN, steps=1, distillation=0.0, weight_decay=0.0, rate=Constant(), optimizer=Sgd(0.0, False))
    gradients = []

    class Watch(Hook):
        def after_step(self, step):
            gradients.extend(p.grad.clone() for p in step.model.parameters())

    before = [p.detach().clone() for p in task.model.parameters()]
    trained = train(copy.deepcopy(task.model), task, plan, hooks=[Watch()])
    for old, new, gradient in zip(before, trained.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), old - plan.lr * gradient)


def test_sparse_norms_make_scales_small(task):
    """The penalty's gradient is its strength times the sign of each scale, and scales shrink under it."""
    scales = {}
    for strength in (0.0, 0.1):
        plan = replace(PLAN, steps=40, distillation=0.0)
        trained = train(copy.deepcopy(task.model), task, plan, hooks=[SparseNorms(strength)] if strength else [])
        scales[strength] = float(trained[1].weight.abs().sum().detach())
    assert scales[0.1] < 0.8 * scales[0.0]
    assert SparseNorms().penalty(Step(nn.Linear(2, 2), 0, 1, 1)) is None


@pytest.mark.parametrize(
    ("norm", "optimizer", "rate"),
    [(nn.LayerNorm(8), Adam(), 0.001), (nn.BatchNorm1d(8), Sgd(), 0.03), (nn.Identity(), Sgd(), 0.03)],
)
def test_networks_with_layer_norm_only_are_trained_by_adam(norm, optimizer, rate):
    """SGD at 0.03 left a transformer on digits at chance level."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.Linear(8, 10))
    task = make_task("small", model, load_data(DataConfig()), torch.device("cpu"))
    plan = make_plan(FinetuneConfig(), task, 1.0, 0)
    assert (plan.optimizer, plan.lr) == (optimizer, pytest.approx(rate))
