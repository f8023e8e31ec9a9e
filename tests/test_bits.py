"""Bits of weights: networks in torch and in the file compute the same, and the file has the predicted size."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import nn

from amc import load
from amc.cli import main
from amc.config import Config
from amc.deploy.export import check_parity, export_onnx, export_pruned, file_layout, read_onnx
from amc.deploy.onnx_macs import count_onnx_macs
from amc.deploy.settings_file import store_settings
from amc.errors import ConfigError, ExportError, PolicyError
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem
from amc.evaluation.score import Score
from amc.graph.build import build_graph
from amc.latency import Runner
from amc.operators.bits import Bits, BitsSetting
from amc.operators.branches import find_branches
from amc.operators.compose import PolicyApplier, apply_settings, cost_model, offered_sites, recorded_settings
from amc.operators.operator import NetworkFacts, SettingBounds
from amc.operators.policy import Policy
from amc.operators.quantisation import FACTORS, largest_integer, quantised, recovered
from amc.operators.registry import BUILT_IN, OPERATORS, load_operators
from amc.operators.rounding import rounded
from amc.operators.weights_file import as_float, find_weights, write_weights
from amc.pipeline.opening import open_task
from amc.pipeline.record import Record
from amc.pipeline.spaces import check_operators
from amc.pipeline.stages import Stages, site_features
from amc.pipeline.training import evaluate_bundle
from amc.runtime.journal import Journal
from amc.runtime.locks import MeasurementLock
from amc.runtime.monitor import Silent
from amc.space.budget import Space
from amc.space.sites import PolicyGrid
from amc.testing import check_operator, example_network
from amc.train.holding import HeldSettings
from amc.train.hooks import Step


@pytest.fixture(scope="module")
def network() -> tuple[NetworkFacts, torch.Tensor]:
    return example_network()


def weights(seed: int, channels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, 3, 3, 3, generator=generator) * torch.rand(channels, 1, 1, 1, generator=generator)


@pytest.mark.parametrize("before", [(), OPERATORS], ids=["alone", "beside channels and branches"])
def test_contract(network: tuple[NetworkFacts, torch.Tensor], before: Any) -> None:
    check_operator(Bits(), *network, before=before)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 8]), st.integers(0, 3))
def test_quantising_again_changes_nothing(seed: int, bits: int, axis: int) -> None:
    once = quantised(weights(seed), bits, axis)
    assert torch.equal(quantised(once, bits, axis), once)
    assert torch.equal(once.float(), once.double().float())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 8]))
def test_integers_are_recovered_behind_any_factor_of_a_channel(seed: int, bits: int) -> None:
    """A folded BatchNorm multiplies each channel, by a negative number too."""
    once = quantised(weights(seed), bits)
    factors = torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(seed + 1))
    integers, scales = recovered(once * factors, bits)
    assert int(integers.abs().max()) == largest_integer(bits)
    assert (scales >= 0).all()
    torch.testing.assert_close(integers * scales[:, None, None, None], once * factors, rtol=1e-6, atol=1e-7)


def test_scales_have_the_least_squared_error() -> None:
    weight = weights(0)
    found = quantised(weight, 4)
    for channel, own in zip(weight, found, strict=True):
        errors = []
        for factor in FACTORS:
            step = float(channel.abs().max()) * factor / 7
            errors.append(float(((channel / step).round().clamp(-7, 7) * step - channel).square().sum()))
        assert float((own - channel).square().sum()) == pytest.approx(min(errors), rel=1e-3)


def test_weights_that_are_not_quantised_have_no_integers() -> None:
    with pytest.raises(ValueError, match="not of 4 bits"):
        recovered(weights(0), 4)


def test_a_channel_of_zeros_stays() -> None:
    weight = weights(0)
    weight[2] = 0
    assert float(quantised(weight, 4)[2].abs().max()) == 0
    assert float(recovered(quantised(weight, 4), 4)[0][2].abs().max()) == 0


def policies(network: NetworkFacts, operators: Any, count: int, seed: int = 0) -> tuple[PolicyGrid, list[Any]]:
    grid = PolicyGrid(offered_sites(network, SettingBounds(min_keep=0.1, step=1), operators))
    rng = np.random.default_rng(seed)
    return grid, [grid.choice([int(rng.integers(0, length)) for length in grid.lengths]) for _ in range(count)]


def test_size_and_outputs_of_a_policy_are_those_of_its_file(
    network: tuple[NetworkFacts, torch.Tensor], tmp_path: Path
) -> None:
    """Widths, removed branches and bits together, to the byte."""
    facts, example = network
    grid, choices = policies(facts, BUILT_IN, 3)
    model = cost_model(facts, grid.sites, BUILT_IN)
    applier = PolicyApplier(copy.deepcopy(facts.model).requires_grad_(False), facts, grid.sites, BUILT_IN)
    for choice in choices:
        entries = recorded_settings(facts, grid.sites, choice, BUILT_IN)
        own = copy.deepcopy(facts.model)
        apply_settings(own, NetworkFacts(own, facts.graph), entries, BUILT_IN)
        path, kept = tmp_path / "pruned.onnx", applier.kept(choice)
        store_settings(path, own, entries, export_pruned(own, example[:1], path, facts.graph, kept), BUILT_IN)
        costs = model.costs(grid.sizes_of(choice)[None])
        assert path.stat().st_size == int(costs["size"][0])
        assert count_onnx_macs(path, example[:1]) == int(costs["macs"][0])
        assert len(find_branches(as_float(read_onnx(path)), facts.graph)) == int(costs["branches"][0])
        assert check_parity(own, example, Runner(path)).largest_difference < 1e-5


def test_the_file_holds_integers_of_the_asked_bits(network: tuple[NetworkFacts, torch.Tensor], tmp_path: Path) -> None:
    facts, example = network
    own, path = copy.deepcopy(facts.model), tmp_path / "bits.onnx"
    entries = {"bits:layer2.0.conv2": BitsSetting(4), "bits:layer3.0.conv1": BitsSetting(8)}
    apply_settings(own, facts, entries, BUILT_IN)
    kept = [np.arange(group.channels) for group in facts.graph.sites]
    store_settings(path, own, entries, export_pruned(own, example[:1], path, facts.graph, kept), BUILT_IN)
    types = {t.name: t.data_type for t in onnx.load(str(path)).graph.initializer}
    assert types["layer2.0.conv2.weight_q"] == TensorProto.INT4
    assert types["layer3.0.conv1.weight_q"] == TensorProto.INT8
    assert types["layer3.0.conv2.weight"] == TensorProto.FLOAT
    assert onnx.load(str(path)).opset_import[0].version == 21


def test_weights_are_found_in_every_kind_of_layer(tmp_path: Path) -> None:
    """Transposed ones too, whose scales lie along another dimension; files are exact and compute the same."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(8, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 8, 1, bias=False),
        nn.Flatten(2), nn.Linear(36, 40), nn.GELU(), nn.Linear(40, 64, bias=False),
    ).eval()  # fmt: skip
    example = torch.randn(2, 8, 6, 6)
    graph = build_graph(model, example[:1])
    export_onnx(model, example[:1], tmp_path / "original.onnx")
    facts = NetworkFacts(model, graph, file_layout(tmp_path / "original.onnx", graph, model))
    assert facts.layout is not None
    assert sorted(facts.layout.weights) == ["0", "1", "3", "5", "7"]
    facts = NetworkFacts(model, graph, facts.layout, [np.arange(group.channels) for group in graph.sites])
    operators = load_operators(["bits"])
    grid, choices = policies(facts, operators, 3)
    model_costs = cost_model(facts, grid.sites, operators)
    for choice in [grid.smallest, *choices]:
        entries = recorded_settings(facts, grid.sites, choice, operators)
        own, path = copy.deepcopy(model), tmp_path / "bits.onnx"
        apply_settings(own, facts, entries, operators)
        kept = [np.arange(group.channels) for group in graph.sites]
        store_settings(path, own, entries, export_pruned(own, example[:1], path, graph, kept), operators)
        assert path.stat().st_size == int(model_costs.costs(grid.sizes_of(choice)[None])["size"][0])
        assert check_parity(own, example, Runner(path)).largest_difference < 1e-5


def test_layers_that_share_weights_are_left_out(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.c(self.b(torch.relu(self.a(x))))
            return y

    model = Tied().eval()
    export_onnx(model, torch.randn(1, 32), tmp_path / "tied.onnx")
    assert list(find_weights(onnx.load(str(tmp_path / "tied.onnx")), model)) == ["c"]


def test_float_weights_are_not_stored_as_integers(network: tuple[NetworkFacts, torch.Tensor], tmp_path: Path) -> None:
    facts, example = network
    export_onnx(facts.model, example[:1], tmp_path / "original.onnx")
    proto = onnx.load(str(tmp_path / "original.onnx"))
    with pytest.raises(ExportError, match="fc in the ONNX file are not of 4 bits"):
        write_weights(proto, find_weights(proto, facts.model), {"fc": 4})


def test_small_steps_of_training_add_up(network: tuple[NetworkFacts, torch.Tensor]) -> None:
    """Each is far below the distance of two 4-bit weights; projection alone would undo every one."""
    model = copy.deepcopy(network[0].model)
    hook = HeldSettings({"bits:fc": BitsSetting(4)}, BUILT_IN)
    hook.apply(model)
    weight: Any = model.fc.weight
    before, step = weight.detach().clone(), 0.02 * float(weight.detach().abs().max())
    for number in range(20):
        with torch.no_grad():
            weight[0] += step
        hook.after_step(Step(model, number, 20, 20))
        assert torch.equal(quantised(weight, 4), weight)
        if number == 10:  # as after an interruption
            other = HeldSettings({"bits:fc": BitsSetting(4)}, BUILT_IN)
            other.apply(model)
            other.restore(copy.deepcopy(dict(hook.state())))
            hook = other
    assert float((weight.detach()[0] - before[0]).mean()) == pytest.approx(20 * step, rel=0.2)
    assert torch.equal(weight[1:], before[1:])


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"bits": 6, "of": 32}, "6 of 32"), ({"bits": 8, "of": 16}, "8 of 16"), ({"bits": 8.0, "of": 32}, "8.0")],
)
def test_bad_entries_of_policies_are_refused(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        Bits().read("bits:conv1", entry)


def test_a_policy_for_another_network_is_refused(network: tuple[NetworkFacts, torch.Tensor]) -> None:
    with pytest.raises(PolicyError, match="'bits:nowhere' is not a layer"):
        apply_settings(copy.deepcopy(network[0].model), network[0], {"bits:nowhere": BitsSetting(8)}, BUILT_IN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"bits": (6,)}}, "--bits 6 is unknown"),
        ({"search": {"operators": ("channels",), "bits": (8,)}}, "add bits to --operators"),
        ({"int8": True}, "--int8 cannot be combined"),
        ({"budget": {"latency": 0.5}}, "--latency supports channels and branches only"),
    ],
)
def test_impossible_options_are_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    config = Config()
    config = config.replace(search=config.search.replace(operators=("channels", "bits")))
    for key, value in changes.items():
        part = getattr(config, key)
        config = config.replace(**{key: part.replace(**value) if isinstance(value, dict) else value})
    with pytest.raises(ConfigError, match=words) as found:
        check_operators(config)
    assert "\n" not in str(found.value)


def test_four_bits_are_refused_where_the_opset_is_kept(network: tuple[NetworkFacts, torch.Tensor]) -> None:
    from dataclasses import replace

    facts, _ = network
    assert facts.layout is not None
    old = replace(facts, layout=replace(facts.layout, least_bits=8))
    assert {site.settings for site in Bits().sites(old, SettingBounds(), ())} == {(8, 32)}
    with pytest.raises(ConfigError, match="--bits 4 needs ONNX opset 21"):
        Bits().sites(old, SettingBounds(bits=(4, 8)), ())


def inputs(seed: int, width: int = 27) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(400, width, generator=generator) @ torch.randn(width, width, generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4, 8]))
def test_rounding_by_least_squares_has_less_error_and_stays_on_the_grid(seed: int, bits: int) -> None:
    weight, x = weights(seed, channels=16).flatten(1), inputs(seed)
    found = rounded(weight, x.T @ x / len(x), bits)
    assert torch.equal(quantised(found, bits), found)
    assert ((found - weight) @ x.T).square().sum() < 0.8 * ((quantised(weight, bits) - weight) @ x.T).square().sum()


def test_rounding_without_covariances_is_rounding_to_the_nearest() -> None:
    weight = weights(0).flatten(1)
    assert torch.equal(rounded(weight, torch.eye(27), 4), quantised(weight, 4))


def test_rounding_survives_inputs_that_are_always_zero() -> None:
    weight = weights(0).flatten(1)
    found = rounded(weight, torch.zeros(27, 27), 4)
    assert torch.equal(quantised(found, 4), found)


@pytest.mark.slow
def test_later_layers_make_up_for_rounded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four bits everywhere, least squares leaves less than a tenth of the distance from the original."""
    config = Config().replace(cache="off")
    config = config.replace(
        search=config.search.replace(operators=("channels", "bits")), budget=config.budget.replace(size=0.5)
    )
    record = Record(open_task(config), config, tmp_path, Journal(None), Silent(), MeasurementLock())
    stages = Stages(record)
    graph = stages.inspect()
    space = stages.space(graph)
    evaluator = stages.calibrate(graph, space)
    choice = tuple(4 if site.operators == ("bits",) else site.original for site in space.sites)
    careful = evaluator.score(choice).loss
    network = evaluator.network(choice)
    for site in space.sites:
        if site.operators == ("bits",):
            weight = network.get_submodule(site.name.removeprefix("bits:")).weight
            assert torch.equal(quantised(weight, 4), weight)
    monkeypatch.setattr(Bits, "restrictions", lambda *_: {})
    evaluator.networks.forget()
    assert careful < 0.1 * evaluator.score(choice).loss


@pytest.mark.slow
def test_a_run_with_bits_delivers_what_it_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line to the bundle: the size, the policy, the weights and the metric are those of the file."""
    out = tmp_path / "run"
    options = ["--operators", "channels,branches,bits", "--size", "0.08", "--min-keep", "0.1", "--candidates", "1"]
    quick = ["--evaluations", "3", "--finetune-epochs", "1", "--precision", "float32", "--threads", "1"]
    assert main(["search", *options, *quick, "--cache", "off", "--out", str(out)]) == 0
    assert "weights: " in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    size = (out / "model.onnx").stat().st_size
    assert size == result["final"]["size"] <= result["budget"]["limits"]["size"]
    chosen = next(c["choice"] for c in result["candidates"] if c["chosen"])
    records = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [r["costs"]["size"] for r in records if r.get("choice") == chosen and "costs" in r] == [size]
    network = load(out)
    for name, setting in Policy.load(out / "policy.json").settings.items():
        if setting.kind == "bits" and setting.size < 32:
            weight = network.state_dict()[f"{name.removeprefix('bits:')}.weight"]
            assert torch.equal(quantised(weight, setting.size), weight)
    assert evaluate_bundle(out).test == pytest.approx(result["final"]["test"], abs=1e-6)


def test_a_removed_branch_has_no_bits(network: tuple[NetworkFacts, torch.Tensor]) -> None:
    """All policies that differ only in bits of layers that are gone are evaluated as one."""
    facts, _ = network
    sites = offered_sites(facts, SettingBounds(), BUILT_IN)
    space = Space(sites, cost_model(facts, sites, BUILT_IN), {"size": 1e6})
    owners = {site.name: site.inside for site in sites if site.inside}
    assert owners["bits:layer3.0.conv1"] == owners["bits:layer3.0.conv2"]
    outer = owners["bits:layer3.0.conv1"]
    gone = [0 if site.name == outer else site.settings[0] for site in sites]
    problem = Problem(space, site_features(facts.graph, space.names), FunctionBackend(lambda choice: Score(1.0, 0.0)))
    found = {problem.evaluate(gone).choice}
    for number, site in enumerate(sites):
        if site.inside == outer:
            gone[number] = 8
            found.add(problem.evaluate(gone).choice)
    assert len(found) == 1
    assert {found for found, site in zip(found.pop(), sites, strict=True) if site.inside == outer} == {32}
