"""The contract of recoveries, tried on a small network: `check_recovery`, published in `amc.testing`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.train.plan import Plan
from amc.train.recovery import Pruned, Recovered, recovered

PLAN = Plan(steps=20, lr=0.03, batch_size=32, weight_decay=5e-4, distillation=0.5, temperature=4.0, seed=7)
WIDTH = 3
"""Of the inner layer's four channels these stay."""


def check_recovery(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """Raise AssertionError, saying why, unless a recovery can be resumed and changes nothing that is not its own.

    ``name`` is one of `amc list recoveries`, or ``file.py:function``, and ``settings`` are its own. Raises ConfigError
    where it fails.
    """
    original = example_original()
    before, states = _state(original), []
    small: Any = narrowed_example(original)
    frozen = small[0].bias.detach().clone()
    found: Recovered | None = None
    for _ in range(2):
        pruned = Pruned(narrowed_example(original), original, narrowed_example)
        again = recovered(name, settings or {}, pruned, PLAN)
        same = found is None or (repr(again.plan), len(again.hooks)) == (repr(found.plan), len(found.hooks))
        assert same, f"{name} gives another training when it is asked again: no run could be resumed"
        found = again
        states.append(_state(again.model))
    after = _state(original)
    assert all(torch.equal(before[key], after[key]) for key in before), f"{name} writes into the original"
    first, second = states
    same = all(torch.equal(first[key], second[key]) for key in first)
    assert same, f"{name} gives other weights when it is asked again: draw them by plan.seed"
    assert all(torch.isfinite(tensor).all() for tensor in first.values()), f"{name} gives weights that are not finite"
    assert found is not None
    assert found.plan.steps <= PLAN.steps, f"{name} trains longer than it may"
    kept: Any = found.model
    assert not kept[0].bias.requires_grad, f"{name} lets parameters be trained that are frozen"
    assert torch.equal(kept[0].bias, frozen), f"{name} changes parameters that are frozen"


def example_original() -> nn.Module:
    """A small untrained network whose first bias is frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def narrowed_example(network: nn.Module) -> nn.Module:
    """A copy of such a network without the last channel of its inner layer."""
    own: Any = copy.deepcopy(network)
    given: Any = network
    for layer in (own[0], own[1]):
        for key, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.ndim:
                _narrow(layer, key, tensor[:WIDTH])
    _narrow(own[3], "weight", given[3].weight[:, :WIDTH])
    own[0].out_features = own[1].num_features = own[3].in_features = WIDTH
    network_own: nn.Module = own
    return network_own


def _narrow(layer: nn.Module, key: str, tensor: Tensor) -> None:
    value = tensor.detach().clone()
    is_parameter = key in layer._parameters
    trainable = is_parameter and getattr(layer, key).requires_grad
    setattr(layer, key, nn.Parameter(value, requires_grad=trainable) if is_parameter else value)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
