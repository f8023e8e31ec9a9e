"""Training that prepares for pruning: penalties and gates by hand, what they leave, and what the search makes of it."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from amc.cli import main
from amc.config import BudgetConfig, Config, DataConfig, FinetuneConfig, ModelConfig, SearchConfig, TrainConfig
from amc.errors import ConfigError
from amc.graph import build_graph
from amc.importance import criterion_files, load_criterion, rank, write_ranking
from amc.pipeline.checks import check
from amc.pipeline.pipeline import run
from amc.pipeline.training import train_network
from amc.task import load_data, make_task
from amc.task.models import build_model
from amc.testing import check_preparation
from amc.train import DenseNetwork, Plan, Step, preparations, prepared, train
from amc.train.sparsify.concrete import HardConcrete, open_probability
from amc.train.sparsify.gates import GateLaw, Gates, fold, gated_channels
from amc.train.sparsify.lasso import GroupLasso

PLAN = Plan(steps=150, lr=0.05, batch_size=64, weight_decay=5e-4, distillation=0.0, temperature=4.0, seed=3)
STRONG = {
    "bn-l1": {"strength": 0.05}, "group-lasso": {"strength": 0.005}, "half-norm": {"strength": 0.003},
    "selective-decay": {}, "learning-compression": {}, "variational-dropout": {}, "bayesian-compression": {},
    "hard-concrete": {"lr": 0.05}, "structured-bayesian": {"lr": 0.1}, "continuous-sparsification": {},
    "trained-widths": {},
}  # fmt: skip
"""Settings with which a training of few steps shows an effect."""


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
    return make_task("small", model, load_data(DataConfig()), torch.device("cpu"))


def dense(task, model=None):
    own = replace(task, model=copy.deepcopy(model or task.model))
    return DenseNetwork(own, build_graph(own.model, own.example))


def chain():
    """Two inputs, two hidden channels and one output, without biases."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    model[0].weight.data = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    model[1].weight.data = torch.tensor([[2.0, 0.0]])
    return model


class Bare:
    """As much of a task as penalties look at."""

    def __init__(self, model):
        self.model, self.device, self.example = model, torch.device("cpu"), torch.ones(1, 2)


def by_hand(model):
    return DenseNetwork(Bare(model), build_graph(model, torch.ones(1, 2)))


@pytest.mark.parametrize("name", preparations())
def test_every_preparation_keeps_the_contract(name):
    check_preparation(name)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def scores(self, model): return {'0': model[0].weight.new_ones(5)}", r"gives \(5,\) scores for '0'"),
        ("def scores(self, model): return {'0': -model[0].weight.new_ones(6)}", "not finite, or below 0"),
        ("def scores(self, model): return {}", "ranks no channels"),
        ("n = 1\n    def after_step(self, step):\n        self.n *= 0.9\n        step.model[0].weight.data *= self.n",
         "cannot be resumed: it ends with other weights"),
        ("def finish(self, model): model.add_module('more', torch.nn.Linear(10, 10))", "with other tensors"),
        ("def finish(self, model): model[0].register_forward_pre_hook(print)", "leaves hooks"),
    ],
)  # fmt: skip
def test_a_preparation_that_breaks_the_contract_is_told(tmp_path, body, told):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom amc.train import Sparsifier\nclass Mine(Sparsifier):\n    steps = 0\n"
        "    def scores(self, model): return {'0': model[0].weight.detach().abs().sum((1, 2, 3))}\n"
        f"    {body}\n"
        "def mine(network, plan): return Mine()\n"
    )
    with pytest.raises(AssertionError, match=told):
        check_preparation(f"{tmp_path}/own.py:mine")


def test_group_lasso_by_hand():
    """Channel 0 has the weights 1, 2 and 2, whose norm is 3; √p = √3. Channel 1 is 0, and its gradient is 0."""
    model = chain()
    lasso = GroupLasso(by_hand(model), 0.1)
    penalty = lasso.penalty(Step(model, 0, 1, 1))
    assert penalty.item() == pytest.approx(0.1 * 3**0.5 * 3)
    penalty.backward()
    assert torch.allclose(model[0].weight.grad, 0.1 * 3**0.5 * model[0].weight.detach() / 3)
    assert torch.allclose(model[1].weight.grad, 0.1 * 3**0.5 * model[1].weight.detach() / 3)
    assert lasso.scores(model)["0"].tolist() == pytest.approx([3 / 3**0.5, 0.0])


def test_bn_l1_by_hand(task):
    network = dense(task)
    network.model[2].weight.data = torch.linspace(-1, 1, 24)
    hook = prepared("bn-l1", {"strength": 0.5}, network, PLAN)
    assert hook.penalty(Step(network.model, 0, 1, 1)).item() == pytest.approx(
        0.5 * float(torch.linspace(-1, 1, 24).abs().sum())
    )
    assert torch.equal(hook.scores(network.model)["1"], torch.linspace(-1, 1, 24).abs())


def test_the_probability_of_an_open_gate_is_how_often_it_is_open(task):
    network = dense(task)
    law = HardConcrete(gated_channels(network), 2.0, 0.5)
    with torch.no_grad():
        law.log_alpha.copy_(torch.linspace(-3, 3, 24))
    torch.manual_seed(0)
    drawn = torch.stack([law.sample(Step(network.model, 0, 1, 1)).detach() for _ in range(3000)])
    assert torch.allclose((drawn > 0).float().mean(0), open_probability(law.log_alpha).detach(), atol=0.04)
    assert ((drawn == 0).any(0) & (drawn == 1).any(0)).all()
    expected = 2.0 * open_probability(law.log_alpha).mean().item()  # all channels have equally many weights
    assert law.penalty(Step(network.model, 0, 1, 1)).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_a_drawn_gate_is_the_formulas(task):
    """dz/d log α = (ζ − γ) s (1 − s) / β where the gate is neither 0 nor 1."""
    law = HardConcrete(gated_channels(dense(task)), 1.0, 0.5)
    torch.manual_seed(1)
    u = torch.rand(24)
    torch.manual_seed(1)
    z = law.sample(None)
    z.sum().backward()
    s = torch.sigmoid((u.logit() + law.log_alpha.detach()) * 1.5)
    wanted = torch.where((z > 0) & (z < 1), 1.2 * s * (1 - s) * 1.5, 0.0)
    assert torch.allclose(law.log_alpha.grad, wanted, atol=1e-5)


class Fixed(GateLaw):
    """Gates that never change."""

    def __init__(self, gates):
        self.gates, self.parameters = gates, [torch.zeros(1, requires_grad=True)]

    def sample(self, step):
        return self.gates

    def final(self):
        return self.gates

    def penalty(self, step):
        return self.parameters[0].sum()

    def scores(self):
        return self.gates


def depthwise():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 10),
    )  # fmt: skip


def transposed():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 4, 1),
        nn.Flatten(), nn.Linear(4 * 256, 10),
    )  # fmt: skip


@pytest.mark.parametrize("make", [lambda: build_model("resnet8", False, 1, 10), depthwise, transposed])
def test_folded_gates_compute_what_gates_computed(task, make):
    torch.manual_seed(0)
    network = dense(task, make().eval())
    channels = gated_channels(network)
    assert len(channels.sites) == len(network.graph.sites)
    gates = torch.rand(len(channels))
    images = task.splits.search.fetch(torch.arange(20))[0]
    plain = network.model(images)
    hook = Gates(network, channels, Fixed(gates), 0.1, "")
    gated = network.model(images)
    for handle in list(network.model.modules()):
        handle._forward_pre_hooks.clear()
    assert torch.equal(network.model(images), plain)
    fold(network.graph, network.model, channels, gates)
    assert torch.allclose(network.model(images), gated, atol=1e-4)
    assert not torch.allclose(gated, plain, atol=1e-3)
    assert set(hook.scores(network.model)) == {site.name for site in network.graph.sites}


def test_a_channel_whose_gate_is_0_counts_for_nothing(task):
    """Its filters may be anything, as if it had been removed."""
    torch.manual_seed(0)
    network = dense(task, build_model("resnet8", False, 1, 10).eval())
    channels = gated_channels(network)
    gates = torch.ones(len(channels))
    gates[3] = 0  # the fourth channel of the first site, a residual stream
    fold(network.graph, network.model, channels, gates)
    images = task.splits.search.fetch(torch.arange(8))[0]
    before = network.model(images)
    network.model.conv1.weight.data[3] += 1
    assert torch.equal(network.model(images), before)


def removal_losses(model, task):
    """By how much the loss on the search split rises without each hidden channel."""
    images, labels = task.splits.search.fetch(torch.arange(len(task.splits.search)))
    losses = []
    with torch.no_grad():
        whole = float(nn.functional.cross_entropy(model(images), labels))
        for channel in range(24):
            own = copy.deepcopy(model)
            own[4].weight[:, channel] = 0
            losses.append(max(0.0, float(nn.functional.cross_entropy(own(images), labels)) - whole))
    return torch.tensor(losses)


def effective(values):
    """How many equal channels the values are worth: (Σ v)² / Σ v²."""
    return float(values.sum() ** 2 / values.square().sum())


@pytest.fixture(scope="module")
def plain(task):
    own = dense(task)
    return removal_losses(train(own.model, own.task, PLAN), task)


@pytest.mark.parametrize("name", preparations())
def test_a_preparation_concentrates_what_channels_are_worth(task, plain, name):
    network = dense(task)
    hook = prepared(name, STRONG[name], network, PLAN)
    model = train(network.model, network.task, PLAN, hooks=[hook])
    hook.finish(model)
    worth, scores = removal_losses(model, task), next(iter(hook.scores(model).values()))
    assert effective(worth) < 0.9 * effective(plain)
    ranks = torch.stack([x.double().argsort().argsort().double() for x in (worth, scores)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.4  # the ranking knows which


def trained(tmp_path, name, **settings):
    return Config(
        data=DataConfig(search=100, calibration=64),
        model=ModelConfig(weights="random"),
        finetune=FinetuneConfig(epochs=0.3, precision="float32"),
        train=TrainConfig(sparsify=name, sparsify_options=settings),
        threads=1,
        out=str(tmp_path / "net.safetensors"),
    )


@pytest.mark.slow
def test_the_search_ranks_by_what_the_training_found(tmp_path):
    found = train_network(trained(tmp_path, "group-lasso"))
    assert found.ranking == tmp_path / "net.ranking.safetensors"
    scores = load_file(found.ranking)
    network = dense_of(found.path)
    orders = rank(f"ranking:{found.ranking}", network.graph, network.model, {})
    for site, order in zip(network.graph.sites, orders, strict=True):
        assert scores[site.name][order].diff().max() <= 0
    config = Config(
        data=DataConfig(search=100, calibration=64),
        model=ModelConfig(weights=str(found.path)),
        budget=BudgetConfig(flops="0.5"),
        search=SearchConfig(searcher="uniform", evaluations=1, recalibrate="off", sequential_reconstruction="off",
                            criterion=f"ranking:{found.ranking}", criterion_scope="global"),
        finetune=FinetuneConfig(epochs=0),
        threads=1, out=str(tmp_path / "run"), cache=str(tmp_path / "cache"),
    )  # fmt: skip
    assert all(proof["met"] for proof in run(config).summary["proof"])


def dense_of(weights: Path):
    model = build_model("resnet8", True, 1, 10).eval()
    model.load_state_dict(load_file(weights))
    return DenseNetwork(Bare(model), build_graph(model, torch.zeros(1, 1, 8, 8)))


def test_another_ranking_in_the_same_file_is_another_criterion(tmp_path):
    path = tmp_path / "own.safetensors"
    write_ranking(path, {"conv1": torch.arange(16.0)})
    first = criterion_files(f"ranking:{path}")
    write_ranking(path, {"conv1": torch.arange(16.0).flip(0)})
    assert criterion_files(f"ranking:{path}") != first


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file"),
        ({"conv1": torch.ones(15)}, "has 15 channels of 'conv1', this network 16"),
        ({"conv1": torch.ones(4, 4)}, "'conv1' is not one finite score for each channel"),
        ({"conv1": torch.full((16,), torch.nan)}, "not one finite score"),
        ({"other": torch.ones(16)}, "which no site of this network has"),
    ],
)
def test_a_ranking_of_something_else_is_told(tmp_path, content, told):
    path = tmp_path / "own.safetensors"
    if content is not None:
        write_ranking(path, content)
    model = build_model("resnet8", True, 1, 10).eval()
    with pytest.raises(ConfigError, match=told):
        rank(f"ranking:{path}", build_graph(model, torch.zeros(1, 1, 8, 8)), model, {})


def test_a_missing_ranking_is_told_before_anything_is_done(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        check(Config(budget=BudgetConfig(flops="0.5"), search=SearchConfig(criterion=f"ranking:{tmp_path}/none")))
    with pytest.raises(ConfigError, match="ranking:FILE"):
        load_criterion("rankin:x")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sparsify": "grup-lasso"}, "unknown preparation 'grup-lasso'. Did you mean 'group-lasso'"),
        ({"sparsify": "bn-l1", "sparsify_options": {"strenth": 1}}, "Did you mean 'strength'"),
        ({"sparsify_options": {"strength": 1}}, "name one with --sparsify"),
    ],
)
def test_what_cannot_be_prepared_is_told_first(tmp_path, settings, told):
    config = trained(tmp_path, "bn-l1").replace(train=TrainConfig(**settings), data=DataConfig(name="no-data"))
    with pytest.raises(ConfigError, match=told):
        train_network(config)


def test_gates_and_checks_exclude_each_other(tmp_path):
    config = trained(tmp_path, "hard-concrete")
    with pytest.raises(ConfigError, match="Leave --checks out"):
        train_network(config.replace(finetune=config.finetune.replace(checks=2)))


def test_a_network_without_norms_has_no_scales(task):
    with pytest.raises(ConfigError, match="use another, such as --sparsify group-lasso"):
        prepared("bn-l1", {}, by_hand(chain()), PLAN)


def test_one_of_the_users_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from amc.train import Sparsifier\n"
        "class Mine(Sparsifier):\n"
        "    def __init__(self, network): self.sites = network.graph.sites\n"
        "    def scores(self, model): return {s.name: model.conv1.weight.new_ones(s.channels) for s in self.sites}\n"
        "def mine(network, plan): return Mine(network)\n"
    )
    arguments = [
        "--sparsify",
        "own.py:mine",
        "--search-images",
        "50",
        "--finetune-epochs",
        "0.1",
        "--out",
        "a.safetensors",
    ]
    assert main(["train", *arguments]) == 0
    assert "ranking:a.ranking.safetensors" in capsys.readouterr().out
    assert load_file("a.ranking.safetensors")["conv1"].tolist() == [1.0] * 16


def test_settings_are_told_by_the_command_line(capsys):
    assert main(["list", "preparations"]) == 0
    assert "strength=0.0001: λ, the weight of Σ √p ‖w‖ in the loss" in capsys.readouterr().out
