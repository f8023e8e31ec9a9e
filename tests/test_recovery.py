"""Recoveries: what a pruned network is trained from, and the contract that all of them keep."""

from pathlib import Path

import pytest
import torch
from torch import nn

from amc.config import BudgetConfig, Config, DataConfig, FinetuneConfig, SearchConfig
from amc.deploy.bundle import save_weights
from amc.deploy.result import read_result
from amc.errors import AmcError, ConfigError, ModelError
from amc.pipeline import recovering
from amc.pipeline.checks import check
from amc.pipeline.pipeline import run
from amc.task.models import build_model
from amc.testing import check_recovery
from amc.train import Plan, Pruned, recovered, recoveries, recovery_settings
from amc.train.contract import example_original
from amc.train.recover_rates import LastPart, Steps
from amc.train.recover_scratch import redraw

PLAN = Plan(steps=8, lr=0.03, batch_size=32, weight_decay=5e-4, distillation=0.5, temperature=4.0, seed=3)


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that the digits network might have had early in its training."""
    path = tmp_path_factory.mktemp("early") / "early.safetensors"
    torch.manual_seed(1)
    save_weights(build_model("resnet8", True, 1, 10), path)
    return path


def settings_of(name: str, early: Path) -> dict[str, object]:
    return {"weights": str(early)} if name == "rewind-weights" else {}


def config_of(name: str, early: Path, out: Path) -> Config:
    return Config(
        data=DataConfig(search=100, calibration=64),
        budget=BudgetConfig(params="0.5"),
        search=SearchConfig(searcher="uniform", evaluations=1, recalibrate="off", sequential_reconstruction="off"),
        finetune=FinetuneConfig(
            epochs=0.5,
            candidates=1,
            precision="float32",
            recover=name,
            recover_options=settings_of(name, early),
        ),
        threads=1,
        device="cpu",
        out=str(out),
    )


class Killed(BaseException):
    """Ends a run as an interruption does."""


@pytest.mark.parametrize("name", recoveries())
def test_every_recovery_can_be_asked_again(name, tmp_path):
    save_weights(example_original(), tmp_path / "small.safetensors")
    check_recovery(name, settings_of(name, tmp_path / "small.safetensors"))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pruned.model[0].weight.data.normal_()", "gives other weights when it is asked again"),
        ("pruned.original[0].weight.data.zero_()", "writes into the original"),
        ("pruned.model[0].bias.data.zero_()", "changes parameters that are frozen"),
        ("pruned.model.requires_grad_(True)", "lets parameters be trained that are frozen"),
        ("plan = replace(plan, steps=2 * plan.steps)", "trains longer than it may"),
        ("plan = replace(plan, lr=random())", "gives another training"),
    ],
)
def test_a_recovery_that_breaks_the_contract_is_told(tmp_path, body, told):
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\nfrom random import random\nfrom amc.train import Recovered\n"
        f"def mine(pruned, plan):\n    {body}\n    return Recovered(pruned.model, plan)\n"
    )
    with pytest.raises(AssertionError, match=told):
        check_recovery(f"{tmp_path}/own.py:mine")


@pytest.mark.parametrize("name", recoveries())
def test_every_recovery_keeps_the_contract(name, early, tmp_path, monkeypatch):
    """The same seed gives the same weights, whether or not it was interrupted, and the budget holds."""
    monkeypatch.setattr("amc.train.trainer.CHECKPOINT_SECONDS", 0.0)
    whole = run(config_of(name, early, tmp_path / "whole"))
    assert all(proof["met"] for proof in whole.summary["proof"])
    wanted = whole.model.state_dict()
    real, interrupted = recovering.train, []

    def killed(model, task, plan, teacher, checkpoint, progress, hooks):
        def report(done, loss):
            if done >= 0.5 and not interrupted:
                interrupted.append(done)
                raise Killed
            progress(done, loss)

        return real(model, task, plan, teacher, checkpoint, report, hooks)

    monkeypatch.setattr(recovering, "train", killed)
    folder = tmp_path / "killed"
    if name == "none":
        again = run(config_of(name, early, folder))
    else:
        with pytest.raises(Killed):
            run(config_of(name, early, folder))
        again = run(config_of(name, early, folder), resume=folder)
        assert interrupted
    found = again.model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.fixture
def pruned() -> Pruned:
    torch.manual_seed(0)
    original, model = nn.Linear(4, 3), nn.Linear(4, 2)
    return Pruned(model, original, lambda network: first_two(network))


def first_two(network: nn.Module) -> nn.Module:
    own = nn.Linear(4, 2)
    own.load_state_dict({key: tensor[:2] for key, tensor in network.state_dict().items()})
    return own


def test_fine_tuning_is_todays_training(pruned):
    found = recovered("finetune", {}, pruned, PLAN)
    assert (found.model, found.plan, list(found.hooks)) == (pruned.model, PLAN, [])


def test_scratch_draws_other_weights_by_the_seed(pruned):
    before = pruned.model.weight.detach().clone()
    first = recovered("scratch", {}, pruned, PLAN).model.weight.detach().clone()
    assert not torch.equal(first, before)
    assert torch.equal(recovered("scratch", {}, pruned, PLAN).model.weight, first)
    assert first.abs().max() <= 0.5  # 1 / sqrt(4), as nn.Linear draws them


def test_what_is_frozen_stays():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    kept = [model[0].weight.clone(), model[2].bias.clone()]
    model[1].running_mean.fill_(7)
    redraw(model, 0)
    assert torch.equal(model[0].weight, kept[0])
    assert torch.equal(model[2].bias, kept[1])
    assert model[1].running_mean.tolist() == [0, 0]


def test_bare_parameters_keep_mean_and_deviation():
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(5 + 2 * torch.randn(10_000))
            self.scale = nn.Parameter(torch.tensor(3.0))

    model = Embedding()
    before = model.places.detach().clone()
    redraw(model, 0)
    assert not torch.equal(model.places, before)
    assert model.places.mean().item() == pytest.approx(5, abs=0.1)
    assert model.places.std().item() == pytest.approx(2, abs=0.1)
    assert model.scale.item() == 3


def test_rates_are_those_of_the_last_part():
    whole = [Steps()(step, 40) for step in range(40)]
    assert [LastPart(Steps(), 0.25)(step, 10) for step in range(10)] == whole[30:]
    assert [LastPart(Steps(), 1.0)(step, 40) for step in range(40)] == whole


def test_learning_rates_are_rewound(pruned):
    found = recovered("rewind-lr", {"share": 0.5, "lr": 0.2}, pruned, PLAN)
    assert found.model is pruned.model
    assert (found.plan.lr, found.plan.steps) == (0.2, PLAN.steps)
    assert [found.plan.rate(step, 8) for step in range(8)] == [0.1] * 4 + [0.01] * 4


def test_weights_are_rewound_and_cut_alike(pruned, tmp_path):
    early = nn.Linear(4, 3)
    save_weights(early, tmp_path / "early.safetensors")
    found = recovered("rewind-weights", {"weights": str(tmp_path / "early.safetensors")}, pruned, PLAN)
    assert torch.equal(found.model.weight, early.weight[:2])


def test_what_cannot_be_had_is_refused_before_anything_is_spent(early, tmp_path):
    with pytest.raises(ConfigError, match="recovery rewind-weights: weights"):
        check(Config(budget=BudgetConfig(flops="0.5"), finetune=FinetuneConfig(recover="rewind-weights")))
    with pytest.raises(ConfigError, match="Did you mean 'scratch'"):
        recovery_settings("scrach", {})
    with pytest.raises(ConfigError, match="share is 2"):
        recovery_settings("rewind-lr", {"share": 2})
    other = tmp_path / "other.safetensors"
    save_weights(nn.Linear(2, 2), other)
    with pytest.raises(ModelError, match="does not fit the network"):
        run(config_of("rewind-weights", other, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return Recovered(pruned.original, plan)", "not the pruned one's size"),
        ("return 1 / 0", "fails: ZeroDivisionError"),
    ],
)
def test_a_recovery_of_the_users_own_is_checked(pruned, tmp_path, body, told):
    (tmp_path / "own.py").write_text(f"from amc.train import Recovered\ndef mine(pruned, plan):\n    {body}\n")
    with pytest.raises(AmcError, match=told):
        recovered(f"{tmp_path}/own.py:mine", {}, pruned, PLAN)
    assert recovered("finetune", {}, pruned, PLAN).model is pruned.model


def test_a_recovery_of_the_users_own_runs(early, tmp_path):
    (tmp_path / "own.py").write_text(
        "from amc.train import Recovered\n"
        "def zeros(pruned, plan):\n"
        "    for p in pruned.model.parameters():\n"
        "        p.data.zero_()\n"
        "    return Recovered(pruned.model, plan)\n"
    )
    result = run(config_of(f"{tmp_path}/own.py:zeros", early, tmp_path / "run"))
    assert result.model.conv1.weight.abs().max() < 0.2
    assert read_result(tmp_path / "run" / "result.json")["config"]["finetune"]["recover"] == "own.py:zeros"
