"""Folding BatchNorms keeps the outputs, and leaves the network unchanged afterwards."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from amc.graph.build import build_graph
from amc.reconstruction.fold import NormFolder


def shaken(model: nn.Module) -> nn.Module:
    """Give the norms random statistics and parameters."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.2, 3)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def sequence(*layers: nn.Module) -> nn.Module:
    return shaken(nn.Sequential(*layers))


NETWORKS = {
    "convolution": (
        sequence(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 3)),
        (2, 3, 9, 9),
    ),
    "with a bias": (sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), (2, 3, 9, 9)),
    "depthwise": (
        sequence(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
        (2, 3, 9, 9),
    ),
    "not affine": (sequence(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8, affine=False), nn.Conv1d(8, 2, 1)), (2, 3, 9)),
    "linear": (sequence(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), (2, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_the_outputs_and_no_norm_runs(name):
    model, shape = NETWORKS[name]
    x = torch.randn(shape)
    folder = NormFolder(model, build_graph(model, x).layers, x)
    before, state = model(x), copy.deepcopy(model.state_dict())
    with folder.folded(model), torch.no_grad():
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(model(x), before)


def test_later_layers_wait_and_an_error_undoes_everything():
    model, shape = NETWORKS["with a bias"]
    x, state = torch.randn(shape), copy.deepcopy(model.state_dict())
    folder, weight = NormFolder(model, build_graph(model, x).layers, x), model[0].weight

    def read() -> None:
        with folder.folded(model, later={"0"}) as fold:
            assert model[0].weight is weight
            fold("0")
            assert model[0].weight is not weight
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        read()
    assert model[0].weight is weight
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


class Heard(nn.Module):
    """The layer's output is also read before its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.layer(x)
        return self.last(self.norm(x) + x)


class Curious(nn.Module):
    """The forward pass inspects its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.layer(x))) * self.norm.eps


@pytest.mark.parametrize("kind", [Heard, Curious])
def test_nothing_is_folded_where_outputs_would_change(kind):
    """Even if the named norms are wrong."""
    model, x = shaken(kind()), torch.randn(2, 3, 9, 9)
    layers = build_graph(model, x).layers
    folder = NormFolder(model, [replace(x, norm="norm") if x.name == "layer" else x for x in layers], x)
    with folder.folded(model):
        assert isinstance(model.norm, nn.BatchNorm2d)


class Bare(nn.Module):
    """A norm after weights that belong to no module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 12))
        self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.norm(nn.functional.linear(x, self.weight)).relu())


class Twice(nn.Module):
    """One norm for two layers. A new norm changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.one(x)).relu() + self.norm(self.two(x)).relu())


@pytest.mark.parametrize(("kind", "shape"), [(Bare, (4, 12)), (Twice, (2, 3, 9, 9))])
def test_norms_that_no_layer_alone_has(kind, shape):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(shape)
    layers = build_graph(model, x).layers
    named = [replace(layer, norm="norm") if layer.name in ("one", "two") else layer for layer in layers]
    for found in (layers, named):
        folder = NormFolder(model, found, x)
        with folder.folded(shaken(model)), torch.no_grad():
            inside = model(x)
        torch.testing.assert_close(inside, model(x).detach(), rtol=1e-4, atol=1e-5)
    assert all(layer.norm is None for layer in layers if layer.name in ("one", "two"))
