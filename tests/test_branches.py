"""Residual branches that are removed whole: what is left costs and computes what was predicted."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from networks import built, lively, output
from onnx import TensorProto, helper
from torch import nn

from amc.cli import main
from amc.config import BudgetConfig, Config, SearchConfig
from amc.deploy.bundle import apply
from amc.deploy.export import check_parity, export_onnx, export_pruned, file_layout, read_onnx
from amc.deploy.onnx_macs import count_onnx_macs
from amc.errors import BudgetError, PolicyError
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.problem import Problem
from amc.evaluation.reward import loss
from amc.evaluation.score import Score
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.build import build_graph
from amc.graph.surgery import ChannelCutter
from amc.latency import LatencyProbe, Runner
from amc.latency.learned import OperatorTable, Tables
from amc.latency.operators import operators
from amc.operators.branches import find_branches, skip_identities
from amc.operators.channels import legal_widths
from amc.operators.operator import NetworkFacts
from amc.operators.policy import Policy, fingerprint, make_policy
from amc.pipeline.spaces import make_space, offers_branches
from amc.reconstruction.sequential import Effort
from amc.search import load_searcher, searchers
from amc.search.allocate import decode, fast_decoder
from amc.space.budget import Space
from amc.space.resources import ResourceModel
from amc.space.sites import numeric_sites
from amc.train import Plan, train


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """By case: the network, its example and graph, its file and the file's layout."""
    known = {}

    def made(case):
        if case not in known:
            model, example, graph, _ = built(case)
            path = tmp_path_factory.mktemp("original") / f"{case}.onnx"
            export_onnx(model, example, path)
            known[case] = model, example, graph, path, file_layout(path, graph, model)
        return known[case]

    return made


def some_removed(graph, layout, seed):
    """Random channels of any number at every site, none at every second branch or so."""
    rng = np.random.default_rng(seed)
    widths = [int(rng.integers(1, site.channels + 1)) for site in graph.sites]
    for branch in layout.branches:
        widths[branch.site] *= int(rng.random() < 0.5)
    return widths, [
        np.sort(rng.permutation(site.channels)[:width]) for site, width in zip(graph.sites, widths, strict=True)
    ]


def looked_into(model, example, path):
    """Its channel groups, and the layout of its file, which is written."""
    graph = build_graph(model, example)
    export_onnx(model, example, path)
    return graph, file_layout(path, graph, model)


@pytest.mark.parametrize("case", ["resnet8-digits", "resnet20", "mobilenetv2"])
def test_costs_are_those_of_the_file_and_of_the_network_without_ghosts(case, original, tmp_path):
    model, example, graph, _, layout = original(case)
    resources = ResourceModel(graph, model, layout)
    for seed in range(2):
        widths, kept = some_removed(graph, layout, seed)
        own, path = copy.deepcopy(model), tmp_path / "pruned.onnx"
        ChannelCutter(own, graph.layers).cut(kept)
        gone = export_pruned(own, example, path, graph, kept)
        params = sum(p.numel() for n, p in own.named_parameters() if n.rpartition(".")[0] not in gone)
        left = len(find_branches(read_onnx(path), graph))
        costs = resources.cost(widths)
        found = {
            "macs": count_onnx_macs(path, example),
            "params": params,
            "size": path.stat().st_size,
            "branches": left,
        }
        assert found == {name: costs[name] for name in found}
        assert left < len(layout.branches)
        images = torch.randn(4, *example.shape[1:])
        assert check_parity(own, images, Runner(path)).largest_difference < 1e-5
        operators_left = {node.op_type for node in read_onnx(path).graph.node}
        assert len(read_onnx(path).graph.node) < len(read_onnx(original(case)[3]).graph.node)
        assert "Identity" in operators_left


def test_what_was_removed_comes_back(original):
    model, example, graph, _, layout = original("resnet20")
    own = copy.deepcopy(model)
    cutter = ChannelCutter(own, graph.layers)
    cutter.cut(some_removed(graph, layout, 0)[1])
    assert not torch.equal(output(own, example), output(model, example))
    cutter.cut([np.arange(site.channels) for site in graph.sites])
    assert torch.equal(output(own, example), output(model, example))


def test_a_removed_branch_is_the_stream_alone(original):
    """Without its only branch a block gives what its shortcut gives."""
    model, _, graph, _, layout = original("resnet8-digits")
    site = next(b.site for b in layout.branches if graph.sites[b.site].name == "layer1.0.conv1")
    own = copy.deepcopy(model)
    ChannelCutter(own, graph.layers).cut([np.arange(0 if s == site else x.channels) for s, x in enumerate(graph.sites)])
    stream = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        assert torch.equal(own.layer1(stream), stream)
        assert not torch.allclose(model.layer1(stream), stream)


class Bottleneck(nn.Module):
    """Blocks of three convolutions: without the channels of the second one the first is computed for nobody."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5),
                nn.ReLU(), nn.Conv2d(5, 8, 1), nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.fc(x.mean((2, 3)))


def test_what_only_a_removed_branch_needs_goes_too(tmp_path):
    torch.manual_seed(0)
    model, example, path = lively(Bottleneck()), torch.randn(1, 1, 8, 8), tmp_path / "m.onnx"
    graph, layout = looked_into(model, example, path)
    assert [graph.sites[b.site].name for b in layout.branches] == ["blocks.0.3", "blocks.1.3"]
    kept = [np.arange(0 if site.name == "blocks.0.3" else site.channels - 1) for site in graph.sites]
    own, pruned = copy.deepcopy(model), tmp_path / "pruned.onnx"
    ChannelCutter(own, graph.layers).cut(kept)
    gone = export_pruned(own, example, pruned, graph, kept)
    assert gone == {f"blocks.0.{n}" for n in (0, 1, 3, 4, 6, 7)}
    params = sum(p.numel() for n, p in own.named_parameters() if n.rpartition(".")[0] not in gone)
    costs = ResourceModel(graph, model, layout).cost([len(k) for k in kept])
    assert (costs["macs"], costs["params"]) == (count_onnx_macs(pruned, example), params)
    assert costs["size"] == pruned.stat().st_size
    assert check_parity(own, torch.randn(3, 1, 8, 8), Runner(pruned)).largest_difference < 1e-5


class Scaled(nn.Module):
    """A branch that is added through a learned factor a channel (LayerScale, arXiv:2103.17239)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.gamma, self.c, self.fc = nn.Parameter(torch.rand(8, 1, 1)), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.gamma * self.b(torch.relu(self.a(x)))
        return self.fc(torch.relu(self.c(x)).mean((2, 3)))


def test_a_factor_goes_with_its_branch_and_the_policy_can_be_applied_again(tmp_path):
    torch.manual_seed(0)
    model, example, path = Scaled().eval(), torch.randn(1, 1, 8, 8), tmp_path / "m.onnx"
    graph, layout = looked_into(model, example, path)
    assert [graph.sites[b.site].name for b in layout.branches] == ["a"]
    kept = [np.arange(0 if site.name == "a" else site.channels - 1) for site in graph.sites]
    own = apply(model, make_policy(graph, fingerprint(model), kept, example))
    gone = export_pruned(own, example, tmp_path / "pruned.onnx", graph, kept)
    assert gone == {"a", "b", "gamma"}
    costs = ResourceModel(graph, model, layout).cost([len(k) for k in kept])
    params = sum(p.numel() for n, p in own.named_parameters() if gone.isdisjoint((n, n.rpartition(".")[0])))
    assert (costs["params"], costs["size"]) == (params, (tmp_path / "pruned.onnx").stat().st_size)
    assert check_parity(own, torch.randn(3, 1, 8, 8), Runner(tmp_path / "pruned.onnx")).largest_difference < 1e-5


class Gated(nn.Module):
    """A branch whose channels something else reads, too; a plain layer; and one that is added to its own past."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.c, self.d, self.gate = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(6, 8)
        self.e, self.fc = nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.b(torch.relu(self.a(x)))
        y = torch.relu(self.c(x))
        x = x * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None] + self.d(y)
        return self.fc(torch.relu(self.e(x)).mean((2, 3)))


def test_only_what_is_a_branch_can_be_removed(tmp_path):
    torch.manual_seed(0)
    model, example, path = Gated().eval(), torch.randn(1, 1, 8, 8), tmp_path / "m.onnx"
    graph, layout = looked_into(model, example, path)
    assert [graph.sites[b.site].name for b in layout.branches] == ["a"]
    kept = [np.arange(0 if site.name == "c" else site.channels) for site in graph.sites]
    own = copy.deepcopy(model)
    ChannelCutter(own, graph.layers).cut(kept)
    with pytest.raises(PolicyError, match="'c' keeps no channels, but is not in a removable residual branch"):
        export_pruned(own, example, tmp_path / "none.onnx", graph, kept)
    assert not (tmp_path / "none.onnx").exists()
    for name, good in (("a", True), ("c", False), ("e", False), ("stem", False)):
        kept = [np.arange(0 if site.name == name else site.channels) for site in graph.sites]
        policy = make_policy(graph, fingerprint(model), kept, example)
        if good:
            assert torch.isfinite(output(apply(model, policy), example)).all()
        else:
            with pytest.raises(PolicyError, match=f"'{name}' keeps no channels, but is not in a removable"):
                apply(model, policy)


def test_a_policy_that_removes_is_written_and_read(original, tmp_path):
    model, example, graph, _, layout = original("resnet8-digits")
    kept = some_removed(graph, layout, 1)[1]
    make_policy(graph, fingerprint(model), kept, example).save(tmp_path / "policy.json")
    read = Policy.load(tmp_path / "policy.json")
    assert [len(k) for k in read.kept(graph)] == [len(k) for k in kept]
    written = json.loads((tmp_path / "policy.json").read_text())
    next(iter(written["sites"].values()))["of"] = -1
    (tmp_path / "policy.json").write_text(json.dumps(written))
    with pytest.raises(PolicyError, match="a whole number of at least 1 for of"):
        Policy.load(tmp_path / "policy.json")


@pytest.fixture(scope="module")
def evaluator(digits):
    task, graph, orders, moments = digits
    effort = Effort(128, 2048, 4)
    settings = EvaluationSettings("loss", reconstruction=Reconstruction(search=effort, final=effort))
    return Evaluator(task, graph, orders, moments, settings)


def without(graph, name):
    return tuple(0 if site.name == name else site.channels for site in graph.sites)


def test_an_evaluation_without_a_branch(evaluator, digits):
    """What follows is re-solved for what is gone: better than leaving it as it was."""
    task, graph, orders, moments = digits
    choice = without(graph, "layer3.0.conv1")
    bare = Evaluator(task, graph, orders, moments, EvaluationSettings("loss", reconstruction=Reconstruction(False)))
    assert evaluator.score(choice).loss < bare.score(choice).loss
    network = evaluator.network(choice)
    with torch.no_grad():
        assert not network.layer3[0].bn2(network.layer3[0].conv2(torch.rand(1, 1, 2, 2))).any()


def test_a_branch_costs_more_than_any_of_its_channels(evaluator, digits):
    graph = digits[1]
    for site, own in enumerate(graph.sites):
        errors = [evaluator.site_error(site, width) for width in range(own.channels + 1)]
        assert errors[0] > errors[1] >= errors[-1]


def test_training_leaves_a_removed_branch_silent(evaluator, digits):
    task, graph = digits[:2]
    choice = without(graph, "layer2.0.conv1")
    model = evaluator.pruned(choice)
    before = copy.deepcopy(model.state_dict())
    train(model, task, Plan(5, 0.03, 64, 5e-4, 0.5, 4.0, 0, "float32"), task.model)
    after = model.state_dict()
    assert not torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"])
    for name in ("conv2.weight", "bn2.weight", "bn2.bias"):
        assert not after[f"layer2.0.{name}"].any()
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("layer2.0"))


def space_of(original, case, limits):
    model, _, graph, _, layout = original(case)
    resources = ResourceModel(graph, model, layout)
    sites = {branch.site for branch in layout.branches}
    widths = [(*([0] if s in sites else []), *legal_widths(x.channels, 0.2)) for s, x in enumerate(graph.sites)]
    whole = resources.cost([w[-1] for w in widths])
    given = {name: share * whole[name] for name, share in limits.items()}
    return Space(numeric_sites([s.name for s in graph.sites], widths), resources, given)


@pytest.mark.parametrize("limits", [{"branches": 0.5}, {"branches": 0.34, "macs": 0.5}])
def test_every_way_to_a_policy_keeps_to_the_branches(original, limits):
    space, rng = space_of(original, "resnet20", limits), np.random.default_rng(0)
    tables = [np.sort(rng.random(len(s)))[::-1] for s in space.settings]
    quick = fast_decoder(space, tables)
    found = [space.fit(rng.uniform(0.05, 1, len(tables))) for _ in range(5)]
    found += [space.fit(np.ones(len(tables))), decode(space, tables, np.ones(len(tables))), quick(np.ones(len(tables)))]
    assert space.fits(found).all()
    assert all(space.is_legal(choice) for choice in found)
    prefix: list[int] = []
    for _ in space.names:
        prefix.append(space.allowed(prefix)[-1])
    assert space.fits([prefix]).all()


def test_the_allocated_branches_are_those_that_count(original):
    """Two branches in three go: those whose sites lose nothing by it."""
    space = space_of(original, "resnet20", {"branches": 3 / 9, "macs": 0.9})
    removable = [s for s, settings in enumerate(space.settings) if settings[0] == 0]
    tables = [np.linspace(1e-3, 0, len(settings)) for settings in space.settings]
    for site in removable[::3]:
        tables[site] = np.linspace(1, 0, len(space.settings[site]))
    choice = decode(space, tables, np.ones(len(tables)))
    assert [s for s in removable if choice[s] > 0] == removable[::3]


def test_time_without_a_branch_is_that_of_the_other_operators(original):
    _, example, graph, path, layout = original("resnet8-digits")
    found = operators(onnx.load(str(path)), layout, len(graph.sites), example.numpy())
    assert sum(op.branch >= 0 for op in found) == 2 * len(layout.branches)
    marks = np.array([64])
    tables = Tables(found, {op.kind: OperatorTable(marks, marks, np.ones((1, 1)), 0.1) for op in found}, 0.5, 1.0)
    full = [site.channels for site in graph.sites]
    assert tables([full])[0] == 0.5 + len(found)
    for removed in range(1, len(layout.branches) + 1):
        widths = list(full)
        for branch in layout.branches[:removed]:
            widths[branch.site] = 0
        assert tables([widths])[0] == 0.5 + len(found) - 2 * removed
        assert tables.starting([widths])[0] == pytest.approx(0.1 * (len(found) - 2 * removed))


def test_the_cut_file_runs_without_its_branches(original):
    _, example, graph, path, layout = original("mobilenetv2")
    probe = LatencyProbe(path, layout, example.numpy())
    widths, kept = some_removed(graph, layout, 3)
    model = probe.cut(kept)
    Runner(model)(example.numpy())
    nodes = onnx.load_from_string(model).graph.node
    assert len(nodes) < len(onnx.load(str(path)).graph.node)
    assert min(widths) == 0


def test_skipping_identities_changes_nothing_but_the_nodes():
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"]), helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("Add", ["d", "a"], ["e"]), helper.make_node("Identity", ["e"], ["y"]),
    ]  # fmt: skip
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 18)]
    )
    proto.ir_version = 10
    skip_identities(proto)
    assert [(n.op_type, *n.input) for n in proto.graph.node] == [("Relu", "x"), ("Add", "b", "x"), ("Identity", "e")]
    x = np.array([[-1.0, 0.0, 2.0]], np.float32)
    np.testing.assert_array_equal(Runner(proto.SerializeToString())(x), [[-1, 0, 4]])


def test_files_with_graphs_in_their_nodes_are_left_alone():
    """What such a graph reads of the one around it is named in it only."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "tf"]
    bodies = [
        helper.make_graph([helper.make_node(kind, ["b", "w"], [out.name])], out.name, [], [out])
        for kind, out in zip(("Add", "Sub"), inner, strict=True)
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["b"]),
        helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    held = [
        helper.make_tensor("c", TensorProto.BOOL, [], [True]),
        helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], initializer=held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    proto.ir_version = 10
    before = proto.SerializeToString()
    skip_identities(proto)
    assert proto.SerializeToString() == before
    assert find_branches(proto, built("resnet20")[2]) == ()
    np.testing.assert_array_equal(Runner(before)(np.zeros((1, 3), np.float32)), [[1, 1, 1]])


def test_a_run_removes_branches_and_what_it_leaves_can_be_loaded(tmp_path):
    options = ["--evaluations", "6", "--finetune-epochs", "1", "--candidates", "1", "--threads", "1", "--int8"]
    folder = tmp_path / "run"
    assert main(["search", "--flops", "0.6", "--branches", "2", *options, "--out", str(folder)]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert {p["resource"]: p["met"] for p in result["proof"]} == {"macs": True, "branches": True}
    assert sum(site["width"] == 0 for site in result["sites"]) == 1
    assert result["final"]["size"] == (folder / "model.onnx").stat().st_size
    assert main(["evaluate", str(folder)]) == 0


def test_branches_of_a_network_without_any(capsys, tmp_path):
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    example = torch.randn(1, 1, 8, 8)
    graph = build_graph(model, example)
    export_onnx(model, example, tmp_path / "m.onnx")
    layout = file_layout(tmp_path / "m.onnx", graph, model)
    assert layout.branches == ()
    with pytest.raises(BudgetError, match="no residual branch of this network can be removed whole"):
        make_space(Config(budget=BudgetConfig(branches="0.5")), NetworkFacts(model, graph, layout))
    options = ["--latency", "0.5", "--branches", "0.5", "--latency-model", "command:./measure.sh {onnx}"]
    assert main(["search", *options, "--out", str(tmp_path / "run")]) == 2
    assert "only profiles predict the latency of a network without some of its branches" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "search", "go"),
    [
        ({"flops": "0.5"}, {}, False),
        ({"flops": "0.5"}, {"min_keep": 0.0}, True),
        ({"flops": "0.5", "branches": "3"}, {"min_keep": 0.2}, True),
        ({"latency": "0.5"}, {}, True),
        ({"latency": "0.5", "flops": "0.5"}, {}, True),
        ({"latency": "0.5"}, {"min_keep": 0.2}, False),
        ({"latency": "0.5"}, {"latency_model": "table.csv"}, False),
        ({"latency": "0.5"}, {"latency_model": "table.csv", "min_keep": 0.0}, False),
    ],
)
def test_when_branches_may_go(budget, search, go, original):
    model, _, graph, _, layout = original("resnet8-digits")
    config = Config(budget=BudgetConfig(**budget), search=SearchConfig(**search))
    assert offers_branches(config) is go
    space = make_space(config, NetworkFacts(model, graph, layout))  # without what predicts latency
    assert [s for s, settings in enumerate(space.settings) if settings[0] == 0] == [
        branch.site for branch in layout.branches if go
    ]
    assert set(space.limits) == {"macs" if name == "flops" else name for name in budget} - {"latency"}


@pytest.mark.parametrize("name", sorted(searchers()))
def test_every_searcher_knows_what_to_do_with_branches(name, original):
    """All that they propose is legal and within both limits, or the problem would refuse it."""
    space = space_of(original, "resnet8-digits", {"branches": 0.67, "macs": 0.6})
    graph, whole = original("resnet8-digits")[2], np.array(space.full)

    def score(choice):
        return Score(float(np.mean(1 - np.sqrt(np.array(choice) / whole))), 0.5)

    problem = Problem(space, [site.features for site in graph.sites], FunctionBackend(score), loss)
    load_searcher(name)(problem, 12, 0)
    assert problem.proposals == 12
    assert all(e.error is None and e.costs["branches"] <= 2 for e in problem.evaluations)
