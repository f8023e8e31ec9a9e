"""Re-solving on the pruned network's own features: it equals direct regressions, and improves scores."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.evaluation.site_errors import SiteErrors
from amc.graph.build import build_graph
from amc.operators.operator import NetworkFacts
from amc.reconstruction import regression as mathematics
from amc.reconstruction import sequential
from amc.reconstruction.moments import collect, readers, solvable
from amc.reconstruction.residuals import find_output_uses
from amc.reconstruction.sequential import FULL, SequentialReconstruction
from amc.task import make_task
from amc.task.splits import InMemorySplit, Splits

SAMPLES = 64
REFINING = EvaluationSettings("loss", reconstruction=Reconstruction(final=FULL))


class Residual(nn.Module):
    """Two residual branches without nonlinearities, so that regressions determine every weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 8)
        self.wide1, self.narrow1 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.wide2, self.narrow2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.narrow1(self.wide1(x))
        x = self.narrow2(self.wide2(x)) + x
        return self.head(x)


def linear_task():
    torch.manual_seed(0)
    x = torch.randn(4 * SAMPLES, 12)
    parts = [InMemorySplit(x[i::4], torch.arange(SAMPLES) % 3) for i in range(4)]
    return make_task("linear", Residual(), Splits(*parts, classes=3, source="noise"), torch.device("cpu"))


def regression(x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    solved = np.linalg.lstsq(ones.numpy(), y.double().numpy(), rcond=None)[0]
    return solved[:-1].T, solved[-1]


def test_every_layer_is_the_regression_on_its_actual_inputs(monkeypatch):
    monkeypatch.setattr(mathematics, "RIDGE", 1e-9)
    task = linear_task()
    graph = build_graph(task.model, task.example)
    order = {site.name: np.arange(site.channels) for site in graph.sites}
    kept = [order[s.name][: 3 if s.name.startswith("wide") else None] for s in graph.sites]
    correct = SequentialReconstruction(task, graph, 0)
    from amc.graph.surgery import ChannelCutter

    network = copy.deepcopy(task.model)
    ChannelCutter(network, graph.layers).cut(kept)
    correct(network, kept)
    net, old = network, task.model
    with torch.no_grad():
        x = correct.inputs
        stream, before = net.stem(x), old.stem(x)
        for wide, narrow in (("wide1", "narrow1"), ("wide2", "narrow2")):
            inner = net.get_submodule(wide)(stream)
            branch = old.get_submodule(narrow)(old.get_submodule(wide)(before))
            weight, bias = regression(inner, branch + before - stream)
            np.testing.assert_allclose(net.get_submodule(narrow).weight, weight, atol=2e-3)
            np.testing.assert_allclose(net.get_submodule(narrow).bias, bias, atol=2e-3)
            stream, before = stream + net.get_submodule(narrow)(inner), before + branch
        weight, _ = regression(stream, old.head(before))
        np.testing.assert_allclose(net.head.weight, weight, atol=2e-3)


def uses_of(task):
    graph = build_graph(task.model, task.example)
    return find_output_uses(task.model, {x.name: x for x in graph.layers if solvable(task.model, x)}, task.example)


def test_residual_additions_to_earlier_streams_are_found():
    assert set(uses_of(linear_task()).streams) == {"narrow1", "narrow2"}


class Activated(nn.Module):
    """Layers that are read by one activation only, by an activation and another operator, or by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.twice, self.smooth = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.added, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.first(x)), inplace=True)
        x = nn.functional.relu6(self.second(x))
        x = self.twice(x)
        x = nn.functional.silu(self.smooth(torch.relu(x) + x))
        x = torch.relu(x + self.added(x))
        return torch.relu(self.head(x.mean((2, 3))))


def test_activations_that_are_a_layers_only_reader_are_found():
    torch.manual_seed(0)
    uses = uses_of(small_task(Activated().eval(), (3, 12, 12)))
    assert set(uses.activations) == {"first", "second", "head"}
    assert set(uses.streams) == {"added"}
    x = torch.tensor([-1.0, 2.0, 9.0])
    assert uses.activations["first"](x).tolist() == [0, 2, 9]
    assert uses.activations["second"](x).tolist() == [0, 2, 6]
    assert x.tolist() == [-1, 2, 9]


@pytest.mark.parametrize(
    ("activation", "taken"),
    [
        *((a, True) for a in (nn.ReLU(True), nn.ReLU6(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.LeakyReLU(0.1))),
        *((a, False) for a in (nn.LeakyReLU(-0.1), nn.LeakyReLU(3.0), nn.GELU())),
    ],
)
def test_activations_that_fall_or_rise_steeply_are_not_fitted(activation, taken):
    """Rounds of regressions would not converge for these."""
    body = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 5))
    assert set(uses_of(small_task(body.eval(), (6,))).activations) == ({"0"} if taken else set())


@pytest.mark.parametrize(("normed", "constant"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("activation", [torch.relu, nn.functional.relu6, torch.tanh])
def test_rounds_minimise_the_matching_loss(monkeypatch, activation, normed, constant):
    """At the minimum of the convex loss, its gradient is 0: the rest after the activation correlates with no input."""
    torch.manual_seed(0)
    monkeypatch.setattr(mathematics, "RIDGE", 1e-9)
    x = torch.randn(3000, 12).double() + 0.5
    y = 0.3 * (x @ torch.randn(12, 6).double() + torch.randn(3000, 6) + 0.3 * x[:, :6] ** 2)
    norm, behind = None, lambda outputs: activation(outputs)
    if normed:
        module = nn.BatchNorm1d(6).double().eval()
        module.running_mean, module.running_var = y.mean(0), y.var(0)
        module.weight = nn.Parameter(torch.tensor([1.0, -0.5, 2.0, 1.0, 0.7, 1.0]).double(), requires_grad=False)
        module.bias = nn.Parameter(torch.randn(6).double(), requires_grad=False)
        norm, behind = (module, module.running_mean.clone()), lambda outputs: activation(module(outputs))

    def left(rounds: int) -> torch.Tensor:
        matching = mathematics.matching_of(activation, y, norm, rounds)
        weight, shift = mathematics.regression(x, y, torch.zeros(6, 12).double(), constant, matching)
        missed = behind(x @ weight.T + (shift if constant else 0)) - behind(y)
        return torch.cat([missed.mean(0)[None]] * constant + [x.T @ missed / len(x)])

    gradients = [float(left(rounds).abs().max()) for rounds in (0, sequential.FAST.rounds, 3000)]
    assert gradients[2] < 1e-3 * gradients[0] < gradients[1] < gradients[0]


@pytest.fixture(scope="module")
def refining(digits):
    task, graph, orders, moments = digits
    return task, Evaluator(task, graph, orders, moments, REFINING)


def test_the_whole_network_is_left_alone(refining):
    task, evaluator = refining
    whole = evaluator.refined(evaluator.networks.full)
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor), name


def test_it_improves_the_score_and_is_deterministic(refining):
    _, evaluator = refining
    quarter = (4, 4, 8, 8, 16, 16)
    plain, refined = evaluator.score(quarter), evaluator.refined_score(quarter)
    assert refined.loss < 0.9 * plain.loss
    assert evaluator.score(quarter) == plain
    assert evaluator.refined_score(quarter) == refined


def test_half_precision_changes_little_and_common_first_widths_are_cached(digits, monkeypatch):
    """Solutions for layers after equal first widths come from the cache."""
    task, graph, orders, moments = digits
    settings = EvaluationSettings("loss", reconstruction=Reconstruction(search=FULL))
    evaluator = Evaluator(task, graph, orders, moments, settings)
    quarter, later = (4, 4, 8, 8, 16, 16), (4, 4, 8, 8, 16, 32)
    full = evaluator.score(quarter)
    half = evaluator.with_settings(replace(settings, dtype="bfloat16"))
    assert half.score(quarter).loss == pytest.approx(full.loss, rel=0.05)
    solved: list[int] = []
    solve = sequential.regression
    monkeypatch.setattr(sequential, "regression", lambda *given: (solved.append(1), solve(*given))[1])
    shared = evaluator.score(later)
    alike = len(solved)
    evaluator.networks.forget()
    assert evaluator.score(later) == shared
    assert 0 < alike < len(solved) - alike, "the first layers were solved again"


def test_the_original_is_not_changed_and_keeps_no_hooks(refining):
    task, evaluator = refining
    before = copy.deepcopy(task.model.state_dict())
    evaluator.refined((4, 4, 8, 8, 16, 16))
    assert all(torch.equal(t, before[n]) for n, t in task.model.state_dict().items())
    for network in (task.model, evaluator.networks.plain(evaluator.networks.full)):
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())


def test_a_network_that_runs_other_operators_when_cut_is_refined():
    """Attention that was cut calls its projections, while the original runs one fused operator."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(64, 3, 32, 32)
    parts = [InMemorySplit(x[i::4], torch.arange(16) % 5) for i in range(4)]
    task = make_task("vit", model, Splits(*parts, classes=5, source="noise"), torch.device("cpu"))
    graph = build_graph(task.model, task.example)
    orders = [torch.arange(site.channels) for site in graph.sites]
    moments = collect(task, readers(graph, model), 0)
    evaluator = Evaluator(task, graph, orders, moments, REFINING)
    assert evaluator.refined_score(tuple(site.channels // 2 for site in graph.sites)).loss < 10
    for number, site in enumerate(graph.sites):
        half, quarter = (evaluator.site_error(number, site.channels // part) for part in (2, 4))
        assert 0 < half < quarter < np.inf, site.name
        if site.name.endswith("in_proj_weight"):  # who reads heads is called as a function: nothing was measured
            facts = NetworkFacts(task.model, graph, orders=[order.numpy() for order in orders])
            known = SiteErrors(task, facts, [], moments, "loss").sensitivities
            usual = np.mean([s.whole for s in known.values()])
            assert (half, quarter) == pytest.approx((0.5 * usual, 0.75 * usual))


class InParts(nn.Module):
    """Splits its batch, so its layers run several times in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 5),
        )  # fmt: skip

    def forward(self, x):
        return torch.cat([self.body(part) for part in x.split(24)])


def small_task(model: nn.Module, shape: tuple[int, ...], classes: int = 5):
    x = torch.randn(4 * SAMPLES, *shape)
    parts = [InMemorySplit(x[i::4], torch.arange(SAMPLES) % classes) for i in range(4)]
    return make_task("small", model, Splits(*parts, classes=classes, source="noise"), torch.device("cpu"))


def evaluator_of(task) -> Evaluator:
    graph = build_graph(task.model, task.example)
    orders = [torch.arange(site.channels) for site in graph.sites]
    settings = EvaluationSettings("loss", reconstruction=Reconstruction(search=FULL, final=FULL))
    return Evaluator(task, graph, orders, collect(task, readers(graph, task.model), 0), settings)


def test_a_network_that_takes_its_batch_in_parts():
    torch.manual_seed(0)
    task = small_task(InParts().eval(), (3, 9, 9))
    evaluator = evaluator_of(task)
    full = evaluator.networks.full
    for choice in (full, tuple(width // 2 for width in full), full):
        refined = evaluator.refined(choice)
        assert refined.body[0].bias is None
    x = task.splits.search.fetch(torch.arange(8))[0]
    torch.testing.assert_close(refined(x), task.model(x), rtol=1e-5, atol=1e-5)
    assert evaluator.refined_score(tuple(width // 2 for width in full)).loss < 3


def test_norms_without_statistics_of_their_own():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 5),
    )  # fmt: skip
    evaluator = evaluator_of(small_task(body.eval(), (3, 9, 9)))
    assert evaluator.refined_score(tuple(width // 2 for width in evaluator.networks.full)).loss < 3


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("mean", [0.0, 3.0, 300.0])
def test_half_precision_features_with_large_means_are_fitted_accurately(mean, activated):
    """Sums of squares of bfloat16 numbers around a large mean would drown the variance."""
    torch.manual_seed(0)
    x = (mean + torch.randn(2000, 30)).bfloat16().float()
    y = x @ torch.randn(30, 4) + torch.randn(4)
    before = torch.zeros(4, 30)
    matching = mathematics.matching_of(torch.relu, y, None, 4) if activated else None
    exact, halved = (mathematics.regression(rows, y, before, True, matching) for rows in (x, x.bfloat16()))
    for one, other in zip(exact, halved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * max(1.0, mean))
    assert (x @ halved[0].T + halved[1] - y).std() < 0.1 * y.std()


def test_the_users_torch_settings_are_restored():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with mathematics.bfloat16_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == before
