"""The contract suite of operators on a small network: `check_operator`, published as `amc.testing.check_operator`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc.errors import PolicyError
from amc.operators.compose import (
    PolicyApplier,
    apply_settings,
    cost_model,
    hold_settings,
    offered_sites,
    recorded_settings,
)
from amc.operators.operator import CompressionOperator, NetworkFacts, SettingBounds
from amc.operators.registry import Operators
from amc.space.sites import Choice, Ints, PolicyGrid, frozen_setting

_POLICIES = 12


def check_operator(
    operator: CompressionOperator, network: NetworkFacts, example: Tensor, before: Operators = ()
) -> None:
    """Check everything that spaces, searchers and policies need. Raises AssertionError with the reason.

    ``network`` must be calibrated (`NetworkFacts.orders`), with its model in evaluation mode; ``example [B, ...]`` is
    an input. ``before`` are operators that offer their sites first, such as the one that ``operator`` extends.
    """
    operators = (*before, operator)
    sites = offered_sites(network, SettingBounds(), operators)
    grid, own = PolicyGrid(sites), [k for k, site in enumerate(sites) if operator.kind in site.operators]
    assert own, f"{operator.kind} offers no site in this network"
    assert len(set(grid.names)) == len(sites), "two sites have the same name"
    assert offered_sites(network, SettingBounds(), operators) == sites, "a second call offers other sites"
    for settings in grid.settings:
        again = frozen_setting(json.loads(json.dumps(settings)))
        assert again == settings, f"settings change in a round trip through JSON: {settings}"
    policies = _policies(grid, own)
    _check_costs(network, grid, policies, operators)
    _check_errors(operator, network, grid, operators)
    _check_networks(network, example, grid, policies, operators)
    _check_policy_file(operator, network, grid, policies, operators)
    _check_training(network, example, grid, policies, operators)


def _check_training(
    network: NetworkFacts, example: Tensor, grid: PolicyGrid, policies: Ints, operators: Operators
) -> None:
    """`hold` restores the settings after a training step, and is idempotent."""
    for row in policies[:4]:
        choice = grid.choice(row)
        trained, settings = copy.deepcopy(network.model), recorded_settings(network, grid.sites, choice, operators)
        apply_settings(trained, NetworkFacts(trained, network.graph, network.layout), settings, operators)
        shapes = [tensor.shape for tensor in trained.state_dict().values()]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
        hold_settings(trained, settings, operators)
        once = _output(trained, example)
        assert [t.shape for t in trained.state_dict().values()] == shapes, f"holding {choice} changes tensors' shapes"
        hold_settings(trained, settings, operators)
        close = torch.allclose(_output(trained, example), once, atol=1e-5 * float(once.abs().max()) + 1e-12)
        assert close, f"{choice} is not restored in training: a second hold changes the network's outputs"


def _policies(grid: PolicyGrid, own: Sequence[int]) -> Ints:
    """Positions ``[B, S]``: the original, the first setting everywhere, and random settings at the operator's sites."""
    rng = np.random.default_rng(0)
    full = grid.lengths - 1
    rows = [full, 0 * full]
    for _ in range(_POLICIES):
        row = full.copy()
        for site in own:
            row[site] = rng.integers(0, grid.lengths[site])
        rows.append(row)
    return np.array(rows)


def _check_costs(network: NetworkFacts, grid: PolicyGrid, policies: Ints, operators: Operators) -> None:
    model = cost_model(network, grid.sites, operators)
    found = model.costs(grid.sizes_at(policies))
    original = network.resources.cost([group.channels for group in network.graph.sites])
    for resource, costs in found.items():
        assert costs.shape == (len(policies),), f"{resource} of {len(policies)} policies has the shape {costs.shape}"
        assert (np.isfinite(costs) & (costs >= 0)).all(), f"{resource} is not finite or is below 0"
        assert costs[0] == original[resource], f"{resource} of the original is {costs[0]}, not {original[resource]}"
        alone = [float(model.costs(grid.sizes_at(row[None]))[resource][0]) for row in policies]
        assert np.allclose(costs, alone, rtol=1e-12), f"{resource} of one policy depends on the other policies"
        for row in policies:
            for site in range(len(row)):
                cheapest = row.copy()
                cheapest[site] = 0
                least = float(model.costs(grid.sizes_at(cheapest[None]))[resource][0])
                known = float(model.costs(grid.sizes_at(row[None]))[resource][0])
                assert least <= known, f"the first setting of {grid.names[site]} costs more {resource} than a later one"


def _check_errors(operator: CompressionOperator, network: NetworkFacts, grid: PolicyGrid, operators: Operators) -> None:
    by_kind = {known.kind: known for known in operators}
    for site in grid.sites:
        if operator.kind in site.operators:
            errors = by_kind[site.operators[0]].errors(network, site, _Measures(network))
            errors_of = f"the errors of {site.name} are {list(errors)}"
            assert len(errors) == len(site.settings), f"{errors_of}, but there must be one per setting"
            assert all(np.isfinite(e) and e >= 0 for e in errors), f"{errors_of}, but must be finite and at least 0"
            assert errors[-1] == 0, f"{errors_of}, but must be 0 at the original"


class _Measures:
    """Errors proportional to the number of removed channels, and to the squared change of weights."""

    def __init__(self, network: NetworkFacts) -> None:
        self._groups, self._model = network.graph.sites, network.model

    def removing_channels(self, group: int) -> Tensor:
        return 1 - torch.linspace(0, 1, self._groups[group].channels + 1)

    def changing_weights(self, layer: str, weight: Tensor) -> float:
        module: Any = self._model.get_submodule(layer)
        before = module.weight.detach()
        return float((weight - before).square().sum() / before.square().sum())


def _check_networks(
    network: NetworkFacts, example: Tensor, grid: PolicyGrid, policies: Ints, operators: Operators
) -> None:
    scratch = copy.deepcopy(network.model).requires_grad_(False)
    applier = PolicyApplier(scratch, network, grid.sites, operators)
    wanted, before = _output(network.model, example), {k: v.clone() for k, v in network.model.state_dict().items()}
    found: dict[Choice, Tensor] = {}
    for row in [*policies, *policies[::-1]]:
        choice = grid.choice(row)
        applier.apply(choice)
        output = _output(scratch, example)
        assert output.shape == wanted.shape, f"{choice} gives outputs of the shape {tuple(output.shape)}"
        assert torch.isfinite(output).all(), f"{choice} gives outputs that are not finite"
        assert torch.equal(found.setdefault(choice, output), output), f"{choice} depends on the policies applied before"
        own = copy.deepcopy(scratch)
        applier.finish(own, choice)
        assert torch.equal(_output(own, example), output), f"finish changes the outputs of {choice}"
        real = copy.deepcopy(network.model)
        settings = recorded_settings(network, grid.sites, choice, operators)
        apply_settings(real, NetworkFacts(real, network.graph, network.layout), settings, operators)
        close = torch.allclose(_output(real, example), output, atol=1e-5 * float(wanted.abs().max()) + 1e-12)
        assert close, f"apply and applier give different outputs for {choice}"
    assert torch.allclose(found[grid.full], wanted, atol=1e-6), "the original's settings change the network"
    after = network.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "the original network was modified"


def _output(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(example)
    return output


def _check_policy_file(
    operator: CompressionOperator, network: NetworkFacts, grid: PolicyGrid, policies: Ints, operators: Operators
) -> None:
    by_kind = {known.kind: known for known in operators}
    seen = False
    for row in policies:
        for name, setting in recorded_settings(network, grid.sites, grid.choice(row), operators).items():
            plain = json.loads(json.dumps(setting.to_json()))
            assert plain.get("kind") == setting.kind, f"the entry of {name} does not say its kind: {plain}"
            assert by_kind[setting.kind].read(name, plain) == setting, f"read does not restore {plain}"
            assert 0 <= setting.size <= setting.of, f"the size of {setting} is not between 0 and the original's"
            seen |= setting.kind == operator.kind
    assert seen, f"no policy has a setting of the kind {operator.kind}"
    for entry in ({"kind": operator.kind}, {"kind": operator.kind, **dict.fromkeys(plain.keys() - {"kind"}, None)}):
        assert _refused(operator, entry), f"the entry {entry} is accepted"


def _refused(operator: CompressionOperator, entry: Mapping[str, Any]) -> bool:
    """Whether an entry is refused with a message of one line."""
    try:
        operator.read("a", entry)
    except PolicyError as error:
        return "\n" not in str(error)
    return False
