"""Recipes of training: what they set, what their building blocks compute, and what a run by one of them gives."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc.config import RECIPES, BudgetConfig, Config, DataConfig, FinetuneConfig, SearchConfig, from_dict, to_dict
from amc.config.tree import binding
from amc.deploy.result import read_result
from amc.errors import ConfigError
from amc.pipeline import recovering
from amc.pipeline.choosing import rungs
from amc.pipeline.pipeline import run
from amc.task import evaluate, load_data, make_task
from amc.train import BestWeights, Plan, RecomputedStatistics, WeightAverage, train, training_hooks, training_task
from amc.train.best_weights import is_check
from amc.train.distillation import uniform_targets
from amc.train.recipe import Unaugmented, for_training

PLAN = Plan(12, 0.05, 16, 5e-4, 0.5, 4.0, seed=3)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    return make_task("small", model, load_data(DataConfig()), torch.device("cpu"))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# --- settings -----------------------------------------------------------------------------------------------------


def test_quick_is_what_there_was_before_recipes():
    assert FinetuneConfig() == FinetuneConfig(recipe="quick")
    written = binding(Config())["finetune"]
    assert written == {"epochs": -1.0, "lr": 0.03, "batch_size": 128, "weight_decay": 5e-4, "distillation": 0.5,
                       "temperature": 4.0, "candidates": 3, "trial_share": 0.1, "precision": "auto"}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_written_out_and_single_settings_count(name):
    config = from_dict({"finetune": {"recipe": name, "temperature": 2}})
    assert config.finetune.temperature == 2.0
    for key, value in RECIPES[name].settings.items():
        assert getattr(config.finetune, key) == value
        other = not value if isinstance(value, bool) else "train" if isinstance(value, str) else 1
        assert getattr(FinetuneConfig(recipe=name, **{key: other}), key) == other
    assert from_dict(to_dict(config)) == config
    assert "checks" in to_dict(config)["finetune"]


def test_another_recipe_takes_the_place_of_the_former():
    changed = FinetuneConfig(recipe="thorough", lr=0.1, checks=3).replace(recipe="none")
    assert changed == FinetuneConfig(recipe="none", lr=0.1, checks=3)
    assert changed.replace(lr=0.2) == FinetuneConfig(recipe="none", lr=0.2, checks=3)


def test_an_unknown_recipe_is_told():
    with pytest.raises(ConfigError, match="Did you mean 'standard'"):
        from_dict({"finetune": {"recipe": "standart"}})


# --- building blocks ----------------------------------------------------------------------------------------------


def test_the_average_is_the_recursion(task):
    """θ̄_t = d_t θ̄_{t-1} + (1 - d_t) θ_t, of all weights and statistics, in double precision."""
    model, seen = copy.deepcopy(task.model), []

    class Watch(WeightAverage):
        def after_step(self, step):
            super().after_step(step)
            seen.append({k: v.detach().double().clone() for k, v in step.model.state_dict().items()})

    start = {k: v.detach().double().clone() for k, v in model.state_dict().items()}
    trained = train(model, task, PLAN, task.model, hooks=[Watch(model, 0.7)])
    for name, average in start.items():
        for number, values in enumerate(seen, 1):
            decay = min(0.7, (1 + number) / (10 + number))
            average = decay * average + (1 - decay) * values[name]
        if trained.state_dict()[name].is_floating_point():
            assert torch.allclose(trained.state_dict()[name].double(), average, rtol=1e-5, atol=1e-6)
        else:
            assert int(trained.state_dict()[name]) == PLAN.steps


def test_what_is_frozen_is_averaged_to_itself(task):
    model = copy.deepcopy(task.model)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    assert torch.equal(train(model, task, PLAN, hooks=[WeightAverage(model, 0.9)])[0].weight, before)


def test_label_smoothing_is_torchs():
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 5), torch.randint(0, 5, (7,))
    mixed = 0.9 * F.cross_entropy(logits, labels) + 0.1 * uniform_targets(logits)
    assert float(mixed) == pytest.approx(float(F.cross_entropy(logits, labels, label_smoothing=0.1)), rel=1e-6)


def test_label_smoothing_is_in_the_loss(task):
    losses = {}
    for smoothing in (0.0, 0.3):
        plan = replace(PLAN, steps=1, distillation=0.0, label_smoothing=smoothing)
        train(copy.deepcopy(task.model), task, plan, None, None, lambda _, loss, s=smoothing: losses.update({s: loss}))
    own = copy.deepcopy(task.model).train().requires_grad_(False)
    order = torch.randperm(len(task.splits.train), generator=torch.Generator().manual_seed(3 * 1_000_003))[:16]
    inputs, labels = task.splits.train.fetch(order, torch.Generator().manual_seed(3 * 7_368_787 + 1))
    logits = own(inputs)
    for smoothing, loss in losses.items():
        assert loss == pytest.approx(float(F.cross_entropy(logits, labels, label_smoothing=smoothing)), rel=1e-5)


def test_the_best_of_all_checks_is_kept(task):
    """The score is told by the test, so that the second of four checks along the training is the best."""
    model, networks = copy.deepcopy(task.model), []

    def score(network):
        assert not network.training
        networks.append(copy.deepcopy(network))
        return 1.0, (0.3, 0.5, 0.9, 0.9 - 1e-9, 0.1)[len(networks) - 1]

    hook = BestWeights(model, score, 4)
    trained = train(model, task, PLAN, task.model, hooks=[hook])
    assert [metric for _, metric in hook.scores] == [0.3, 0.5, 0.9, 0.9 - 1e-9, 0.1]
    assert same(trained, networks[2])
    assert not same(trained, networks[4])


def test_a_training_that_only_harms_is_undone(task):
    model = copy.deepcopy(task.model)
    hook = BestWeights(model, lambda _: (float(len(hook.scores)), 0.5), 4)
    trained = train(model, task, PLAN, task.model, hooks=[hook])
    assert len(hook.scores) == 5
    assert same(trained, task.model)


def test_checks_change_nothing_of_the_training(task):
    plain = train(copy.deepcopy(task.model), task, PLAN, task.model)
    model, networks = copy.deepcopy(task.model), []
    train(
        model,
        task,
        PLAN,
        task.model,
        hooks=[BestWeights(model, lambda n: (0.0, len(networks.append(n) or networks)), 3)],
    )
    assert same(plain, networks[-1])


@pytest.mark.parametrize("steps", [1, 3, 7, 100])
@pytest.mark.parametrize("checks", [1, 3, 8])
def test_the_last_step_is_checked_and_none_too_often(steps, checks):
    due = [number for number in range(steps) if is_check(number, steps, checks)]
    assert due[-1] == steps - 1
    assert len(due) == min(steps, checks)


def test_going_on_from_a_checkpoint_keeps_average_and_best_weights(task, tmp_path, monkeypatch):
    config = FinetuneConfig(ema_decay=0.8, checks=6)
    monkeypatch.setattr("amc.train.trainer.CHECKPOINT_SECONDS", 0.0)

    def trained(path=None, stop=2.0):
        def progress(share, _):
            if share > stop:
                raise KeyboardInterrupt

        model = copy.deepcopy(task.model)
        return train(model, task, PLAN, task.model, path, progress, training_hooks(config, model, task))

    whole = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "checkpoint.pt", 0.55)
    assert same(whole, trained(tmp_path / "checkpoint.pt"))


@pytest.mark.parametrize("part", ["values", "weights"])
def test_a_damaged_average_is_done_again(task, tmp_path, part):
    path, config, steps = tmp_path / "checkpoint.pt", FinetuneConfig(ema_decay=0.8, checks=6), []

    def trained(count=lambda *_: None):
        model = copy.deepcopy(task.model)
        return train(model, task, PLAN, task.model, path, count, training_hooks(config, model, task))

    whole = trained()
    state = torch.load(path, weights_only=True)
    next(hook for hook in state["hooks"] if part in hook)[part]["0.weight"].fill_(float("nan"))
    torch.save(state, path)
    assert same(whole, trained(lambda *_: steps.append(1)))
    assert len(steps) == PLAN.steps


def test_recomputed_statistics_are_those_of_the_calibration_images(task):
    model = copy.deepcopy(task.model)
    trained = train(model, task, PLAN, task.model, hooks=[RecomputedStatistics(task)])
    assert len(task.splits.calibration) <= 1024
    inputs, _ = task.splits.calibration.fetch(torch.arange(len(task.splits.calibration)))
    with torch.no_grad():
        mean = trained[0](inputs).mean((0, 2, 3))
    assert torch.allclose(trained[1].running_mean, mean, atol=1e-4)
    assert not trained[1].training


def test_calibration_images_are_augmented_like_the_training_split(task):
    own = training_task(FinetuneConfig(recipe="none"), task).splits
    assert torch.equal(own.train.members, task.splits.calibration.members)
    assert own.train.augmentation == task.splits.train.augmentation
    assert own.search is task.splits.search
    assert training_task(FinetuneConfig(), task) is task


def test_other_splits_are_trained_on_as_they_are(task):
    wrapped = for_training(Unaugmented(task.splits.calibration), task.splits.train)
    given = wrapped.fetch(torch.arange(3), torch.Generator().manual_seed(0))
    assert torch.equal(given[0], task.splits.calibration.fetch(torch.arange(3))[0])
    assert len(wrapped) == len(task.splits.calibration)


def test_soft_targets_alone_need_no_labels(task):
    """Wrong labels change nothing."""

    class Mislabelled:
        def __len__(self):
            return len(task.splits.train)

        def fetch(self, indices, augment=None):
            inputs, labels = task.splits.train.fetch(indices, augment)
            return inputs, (labels + 1) % 10

    wrong = replace(task, splits=replace(task.splits, train=Mislabelled()))
    plan = replace(PLAN, distillation=1.0)
    teacher = train(copy.deepcopy(task.model), task, PLAN)
    found = [train(copy.deepcopy(task.model), given, plan, teacher) for given in (task, wrong)]
    assert same(*found)


@pytest.mark.parametrize(
    ("candidates", "share", "expected"),
    [(1, 0.1, [(1, 0.1)]), (2, 0.1, [(2, 0.1)]), (6, 0.02, [(6, 0.02), (3, 0.04), (2, 0.08)]), (8, 0.6, [(8, 0.6)])],
)
def test_halving(candidates, share, expected):
    assert rungs(candidates, share, halving=True) == expected
    assert rungs(candidates, share, halving=False) == expected[:1]


# --- runs ---------------------------------------------------------------------------------------------------------


def config_of(folder, recipe, **finetune):
    return Config(
        budget=BudgetConfig(flops="0.5"),
        data=DataConfig(search=60),
        search=SearchConfig(searcher="uniform", evaluations=1, refine=1, sequential_reconstruction="off"),
        finetune=FinetuneConfig(
            **{"recipe": recipe, "epochs": 0.6, "candidates": 1, "precision": "float32"} | finetune
        ),
        threads=1,
        out=str(folder),
    )


def test_the_original_is_trained_on_and_survives_a_kill(tmp_path, monkeypatch):
    """One run from end to end, and one that is stopped within the original's training, give the same."""
    whole = run(config_of(tmp_path / "whole", "standard")).summary
    real, calls = recovering.train, []

    def killed(model, task, plan, teacher, checkpoint, progress, hooks):
        calls.append(checkpoint.name)
        if "original" in checkpoint.name:
            raise KeyboardInterrupt
        return real(model, task, plan, teacher, checkpoint, progress, hooks)

    monkeypatch.setattr(recovering, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config_of(tmp_path / "killed", "standard"))
    assert calls == ["checkpoint.pt", "checkpoint.original.1.pt"]
    monkeypatch.setattr(recovering, "train", real)
    again = run(Config(), resume=tmp_path / "killed").summary
    for key in ("trained_original", "differences", "final", "finetune"):
        assert {**again[key], "latency_ms": 0} == {**whole[key], "latency_ms": 0}
    for part in ("search", "test"):
        final, trained = whole["final"][part], whole["trained_original"][part]
        assert whole["differences"]["trained_on"][part] == pytest.approx(final - trained)
        assert whole["differences"]["given"][part] == pytest.approx(final - whole["original"][part])
    assert read_result(tmp_path / "whole" / "result.json")["finetune"]["recipe"] == "standard"
    assert not list((tmp_path / "whole").glob("checkpoint*"))
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "original trained on" in report
    assert "against the original trained on for as long" in report


def test_the_test_split_is_read_once_at_the_end(tmp_path, monkeypatch):
    read = []

    def counted(model, task, split, batch_size=None):
        read.append(split is task.splits.test)
        return evaluate(model, task, split, batch_size)

    for module in ("amc.pipeline.delivery", "amc.pipeline.choosing", "amc.train.recipe", "amc.evaluation.memo"):
        monkeypatch.setattr(f"{module}.evaluate", counted)
    run(config_of(tmp_path / "run", "standard", checks=3))
    assert sum(read) == 3  # the original as given, as trained on, and the delivered network
    first = read.index(True)
    assert all(not test for test in read[:first])
    assert first >= 6  # three checks of each training came before


def test_no_labels_are_trained_on_by_the_recipe_none(tmp_path):
    result = run(config_of(tmp_path / "run", "none", epochs=1.0))
    assert result.summary["finetune"]["recipe"] == "none"
    assert result.summary["trained_original"] is None
    assert [stage["name"] for stage in result.summary["stages"]].count("distil") == 1
    assert "distilled" in (tmp_path / "run" / "report.md").read_text()
    cost = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "training-cost" for record in cost) == 1
