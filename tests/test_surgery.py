"""Dressing one module in the tensors of any policy."""

import copy

import numpy as np
import torch
from networks import EXAMPLE, built, chain, lively, output
from torch import nn

from amc.graph.build import build_graph
from amc.graph.surgery import ChannelCutter


def test_full_widths_give_back_every_byte() -> None:
    model, example, graph, _ = built("mobilenetv2")
    copied = copy.deepcopy(model)
    cutter = ChannelCutter(copied, graph.layers)
    cutter.cut([np.arange(1) for _ in graph.sites])
    assert sum(p.numel() for p in copied.parameters()) < sum(p.numel() for p in model.parameters()) / 20
    cutter.cut([np.arange(site.channels) for site in graph.sites])
    assert repr(copied) == repr(model)
    for (name, old), (also, new) in zip(model.state_dict().items(), copied.state_dict().items(), strict=True):
        assert name == also
        assert torch.equal(old, new), name
    assert torch.equal(output(copied, example), output(model, example))


def test_modules_say_what_they_hold() -> None:
    model = lively(chain(nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, groups=8)))
    graph = build_graph(model, EXAMPLE)
    ChannelCutter(model, graph.layers).cut([np.array([1, 2, 5]), np.array([0, 3])])
    norm, prelu, depthwise = model.middle
    assert (model.a.in_channels, model.a.out_channels) == (3, 3)
    assert norm.num_features == prelu.num_parameters == 3
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (3, 3, 3)
    assert (model.c.in_channels, model.c.out_channels) == (3, 2)
    assert (model.fc.in_features, model.fc.out_features) == (2, 10)


def test_the_kept_channels_are_the_ones_asked_for() -> None:
    model = lively(chain(nn.BatchNorm2d(8)))
    graph = build_graph(model, EXAMPLE)
    smaller = copy.deepcopy(model)
    ChannelCutter(smaller, graph.layers).cut([np.array([1, 6]), np.array([0, 5])])
    assert torch.equal(smaller.a.weight, model.a.weight[[1, 6]])
    assert torch.equal(smaller.middle[0].running_var, model.middle[0].running_var[[1, 6]])
    assert torch.equal(smaller.c.weight, model.c.weight[[0, 5]][:, [1, 6]])
    assert torch.equal(smaller.fc.weight, model.fc.weight[:, [0, 5]])
    assert torch.equal(smaller.fc.bias, model.fc.bias)


def test_solved_tensors_are_cut_along_the_output_only() -> None:
    model = lively(chain())
    graph = build_graph(model, EXAMPLE)
    solved = {"weight": torch.randn(6, 3, 3, 3), "bias": torch.randn(6)}
    ChannelCutter(model, graph.layers).cut([np.array([0, 2, 7]), np.array([2, 4])], {"c": solved})
    assert torch.equal(model.c.weight, solved["weight"][[2, 4]])
    assert torch.equal(model.c.bias, solved["bias"][[2, 4]])


def test_frozen_parameters_stay_frozen() -> None:
    model = lively(chain())
    model.a.weight.requires_grad_(False)
    graph = build_graph(model, EXAMPLE)
    ChannelCutter(model, graph.layers).cut([np.arange(4), np.arange(3)])
    assert not model.a.weight.requires_grad
    assert model.a.bias.requires_grad
    assert model.c.weight.requires_grad
