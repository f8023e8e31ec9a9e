"""What each criterion computes, on networks small enough to be worked out by hand or by automatic differentiation."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from amc.graph.build import build_graph
from amc.importance import CRITERIA, Criterion, Need, Norm, Producer, Reader, SiteView, collect, rank, view
from amc.importance.curvature import diagonal
from amc.importance.group import slots
from amc.importance.statistics import by_channel
from amc.importance.synflow import flow, positive
from amc.task import Objective, Task, make_task
from amc.task.splits import Splits
from amc.testing import check_criterion

EVERYTHING = frozenset(Need)


def part(kind, rows, dim):
    weight = torch.tensor(rows)
    return kind((weight if dim == 0 else weight.T)[..., None], torch.arange(len(rows)), torch.arange(len(rows)))


@pytest.fixture
def site():
    """Three channels: a filter of two weights each, a scale each, and two readers that each read them."""
    return SiteView(
        3,
        readers=(part(Reader, [[1.0, -1.0], [2.0, 0.0], [0.0, 0.0]], 1), part(Reader, [[3.0], [1.0], [4.0]], 1)),
        producers=(part(Producer, [[3.0, -4.0], [0.0, 1.0], [0.0, 0.0]], 0),),
        norms=(part(Norm, [[-0.5], [0.25], [2.0]], 0),),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [5, 3, 4]),
        ("l2", [1 + 1 + 9, 4 + 1, 16]),
        ("filter-l1", [7, 1, 0]),
        ("filter-l2", [25, 1, 0]),
        ("l1-mean", [3.5 + 1 + 3, 0.5 + 1 + 1, 0 + 0 + 4]),
        ("l2-mean", [12.5 + 1 + 9, 0.5 + 2 + 1, 0 + 0 + 16]),
        ("bn-scale", [0.5, 0.25, 2.0]),
        ("fpgm", [34**0.5 + 5, 34**0.5 + 1, 5 + 1]),
    ],
)
def test_of_weights_by_hand(site, name, expected):
    assert CRITERIA[name].scores(site).tolist() == pytest.approx(expected)


def test_channels_with_several_positions_are_joined():
    """Four inputs of a linear layer that two flattened channels make."""
    weight = torch.tensor([[1.0, 2.0, -3.0, 0.5]])[..., None]
    readers = (Reader(weight, torch.arange(4), torch.tensor([0, 0, 1, 1])),)
    assert CRITERIA["l1"].scores(SiteView(2, readers)).tolist() == [3.0, 3.5]
    filters = torch.tensor([[1.0], [0.0], [1.0], [2.0]])[..., None]
    both = (Producer(filters, torch.arange(4), torch.tensor([0, 1, 0, 1])),)
    assert CRITERIA["fpgm"].scores(SiteView(2, (), both)).tolist() == pytest.approx([2**0.5, 2**0.5])


def squared_error(outputs, targets):
    return (outputs - targets).square().sum(1)


SQUARES = Objective("closeness", squared_error, lambda outputs, targets: 1 / (1 + squared_error(outputs, targets)))


@dataclass(frozen=True)
class Samples:
    """The same samples for every purpose."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self):
        return len(self.inputs)

    def fetch(self, indices, augment=None):
        return self.inputs[indices], self.targets[indices]


def task_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Task:
    split = Samples(inputs, targets)
    return make_task("tiny", model, Splits(split, split, split, split, None, "tiny"), torch.device("cpu"), SQUARES)


@pytest.fixture(scope="module")
def tiny():
    """Linear 2 → 3 → ReLU → 1, with its task and all that can be collected of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    inputs, targets = torch.randn(200, 2), torch.randn(200, 1)
    task = task_of(model, inputs, targets)
    graph = build_graph(task.model, task.example)
    return task, graph, (inputs, targets)


def shown(tiny, *needs: Need) -> SiteView:
    task, graph, _ = tiny
    collected = {need: collect(need, task, graph) for need in needs}
    return view(graph, task.model, {}, 0, EVERYTHING, collected)


def test_activations_by_hand(tiny):
    task, _, (x, _) = tiny
    hidden = torch.relu(x @ task.model[0].weight.T + task.model[0].bias).detach().double()
    site = shown(tiny, Need.ACTIVATIONS)
    for name, expected in {
        "mean-activation": hidden.mean(0),
        "std-activation": hidden.std(0, correction=0),
        "apoz": (hidden > 0).double().mean(0),
        "l1-activation": hidden.abs().mean(0),
    }.items():
        assert CRITERIA[name].scores(site).tolist() == pytest.approx(expected.tolist(), rel=1e-5), name


def per_sample(task, x, y):
    """Gradients of every sample's loss by the first layer's weights and biases, the second's weights, and ReLU's."""
    first, _, second = task.model
    for one, truth in zip(x, y, strict=True):
        w1, w2 = (t.detach().clone().requires_grad_() for t in (first.weight, second.weight))
        hidden = torch.relu(w1 @ one + first.bias.detach())
        hidden.retain_grad()
        (w2 @ hidden + second.bias.detach() - truth).square().sum().backward()
        yield w1, w2, hidden


def test_gradients_by_automatic_differentiation(tiny):
    task, _, (x, y) = tiny
    site = shown(tiny, Need.GRADIENTS)
    found = list(per_sample(task, x, y))
    weights = [torch.cat([w1.grad, w2.grad.T], 1) for w1, w2, _ in found]
    values = torch.cat([task.model[0].weight, task.model[2].weight.T], 1).detach()
    mean, square = torch.stack(weights).mean(0), torch.stack(weights).square().mean(0)
    for name, expected in {
        "taylor": torch.stack([(h * h.grad).detach().abs() for _, _, h in found]).mean(0),
        "taylor-weight": torch.stack([(w * values).sum(1).abs() for w in weights]).mean(0),
        "snip": (mean * values).abs().sum(1),
        "fisher": 0.5 * (square * values.square()).sum(1),
    }.items():
        assert CRITERIA[name].scores(site).tolist() == pytest.approx(expected.tolist(), rel=1e-4), name


def test_taylor_tells_what_removing_a_small_channel_costs(tiny):
    """The derivative times the activation is the change of a sample's loss, to first order."""
    task, graph, (x, y) = tiny
    model = copy.deepcopy(task.model)
    with torch.no_grad():
        model[2].weight[:, 1] *= 1e-3
    small = task_of(model, x, y)
    known = {Need.GRADIENTS: collect(Need.GRADIENTS, small, graph)}
    told = view(graph, small.model, {}, 0, EVERYTHING, known).contributions[:, 1].sort().values
    with torch.no_grad():
        before = squared_error(small.model(x), y)
        small.model[2].weight[:, 1] = 0
        fallen = (before - squared_error(small.model(x), y)).sort().values
    assert fallen.tolist() == pytest.approx(told.tolist(), rel=0.05, abs=1e-5)


def hadamard(size: int) -> torch.Tensor:
    signs = torch.ones(1, 1)
    while len(signs) < size:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs


class TestCurvature:
    def test_signs_that_are_orthogonal_give_the_exact_diagonal(self, tiny, monkeypatch):
        """Against the whole Hessian of the network's 9 weights, by 16 sign vectors of which no two agree."""
        task, _, (x, y) = tiny
        start = [task.model[0].weight.detach(), task.model[2].weight.detach()]

        def loss(w1, w2):
            hidden = torch.relu(x @ w1.T + task.model[0].bias.detach())
            return squared_error(hidden @ w2.T + task.model[2].bias.detach(), y).mean()

        whole = torch.autograd.functional.hessian(loss, tuple(start))
        exact = [whole[i][i].reshape(w.numel(), w.numel()).diagonal() for i, w in enumerate(start)]
        drawn = iter(
            [t for row in hadamard(16) for t in ((1 - row[:6].reshape(3, 2)) / 2, (1 - row[6:9].reshape(1, 3)) / 2)]
        )
        monkeypatch.setattr(torch, "randint", lambda *_, **__: next(drawn))
        weights = [w.clone().requires_grad_() for w in start]
        found = diagonal(loss(*weights), weights, torch.Generator(), 16)
        for own, expected in zip(found, exact, strict=True):
            assert own.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)

    def test_of_a_quadratic_loss_it_is_the_loss(self, monkeypatch):
        """One weight a channel that sees its own inputs alone: ½ h w² is what the loss rises by without it."""
        monkeypatch.setattr("amc.importance.curvature.PROBES", 400)
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(3))
            model[1].weight.copy_(torch.diag(torch.tensor([1.0, -2.0, 0.5])))
        inputs = torch.cat([torch.eye(3)] * 60)
        task = task_of(model, inputs, model(inputs).detach())
        graph = build_graph(task.model, task.example)
        site = view(graph, task.model, {}, 0, EVERYTHING, {Need.CURVATURE: collect(Need.CURVATURE, task, graph)})
        readers = SiteView(3, readers=site.readers)
        assert CRITERIA["obd"].scores(readers).tolist() == pytest.approx([1 / 3, 4 / 3, 1 / 12], rel=0.03)


class TestSynapticFlow:
    def test_what_flows_into_a_channel_flows_out_of_it(self, resnet8):
        """Theorem 1, through convolutions, normalisations, ReLUs and additions."""
        graph, model = resnet8
        positives = positive(model)
        flows = flow(positives, torch.ones(1, 1, 8, 8))
        for index, site in enumerate(graph.sites):
            sums = {
                kind: sum(by_channel(slot.rows(flows[slot.tensor]).sum(1), slot.channels, site.channels)
                          for slot in slots(graph, positives, index) if slot.kind is kind)
                for kind in (Producer, Reader)
            }  # fmt: skip
            torch.testing.assert_close(sums[Producer], sums[Reader])

    def test_by_hand(self):
        """Two channels between one input and one output: the flow is the product of the absolute weights."""
        model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[-3.0], [2.0]]))
            model[2].weight.copy_(torch.tensor([[1.0, -2.0]]))
        flows = flow(positive(model), torch.ones(1, 1))
        assert flows["0.weight"].flatten().tolist() == [3.0, 4.0]
        assert flows["2.weight"].flatten().tolist() == [3.0, 4.0]
        task = task_of(model, torch.randn(200, 1), torch.randn(200, 1))
        graph = build_graph(task.model, task.example)
        found = rank("synflow", graph, task.model, {}, {Need.FLOW: collect(Need.FLOW, task, graph)})
        assert found[0].tolist() == [1, 0]

    def test_it_reads_no_data_and_changes_nothing(self, tiny):
        task, graph, _ = tiny
        before = {key: value.clone() for key, value in task.model.state_dict().items()}
        other = task_of(task.model, torch.full((50, 2), 7.0), torch.zeros(50, 1))
        first, second = (collect(Need.FLOW, t, graph) for t in (task, other))
        assert torch.equal(first["0"], second["0"])
        assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


def test_attention_tells_a_channel_that_helps_from_one_that_harms():
    """Of two channels the targets are one's copy; the other adds noise. Scaling it down is what lowers the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.ones(1, 2))
    inputs = torch.rand(400, 2)
    task = task_of(model, inputs, 1.5 * inputs[:, :1])
    graph = build_graph(task.model, task.example)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    helps, harms = collect(Need.ATTENTION, task, graph)["0"].tolist()
    assert harms < 0.35 < 0.5 < helps
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


def test_random_scores_follow_the_seed(resnet8):
    graph, model = resnet8
    first, again, other = (rank("random", graph, model, {}, None, seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert first[0].tolist() != first[1].tolist()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_it_stands_the_contract(name):
    check_criterion(name)
    found = CRITERIA[name]
    assert found.name == name
    assert found.summary
    assert found.reference


ALL = frozenset({Need.PRODUCERS, Need.READERS})


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda site: torch.full((site.channels,), torch.nan), "not finite"),
        (lambda site: torch.ones(site.channels + 1), "not one number a channel"),
        (lambda site: torch.arange(site.channels).double(), "depends on the order"),
        (lambda site: site.total(site.producers, lambda p: p.rows().abs().sum(1)), "does not count"),
        (lambda site: -site.total(site.parts, lambda p: p.rows().abs().sum(1)), "above another"),
        (
            lambda site: site.total(site.parts, lambda p: p.rows(p.weight.mul_(1.5)).abs().sum(1)),
            "when it is called again|changes",
        ),
        (lambda site: [0.0] * site.channels, "gives a list"),
    ],
)
def test_the_contract_says_what_is_wrong(function, told):
    with pytest.raises(AssertionError, match=told):
        check_criterion(Criterion("bad", "bad", "", function, ALL))
