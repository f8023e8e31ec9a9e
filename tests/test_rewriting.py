"""A pruned network's ONNX file that is made from the original's equals the one that the exporter writes."""

import copy

import numpy as np
import pytest
import torch
from networks import lively
from torch import nn

from amc.deploy.export import check_parity, export_onnx, export_pruned, file_layout
from amc.deploy.rewriting import write_rewritten
from amc.errors import ExportError
from amc.graph.build import build_graph
from amc.graph.surgery import ChannelCutter
from amc.latency import Runner
from amc.space.resources import ResourceModel

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Everything(nn.Module):
    """Folded BatchNorms, one before its layer, depthwise and transposed layers, a factor, and a flattened end."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.gamma = nn.Parameter(torch.rand(8))
        self.mix, self.norm, self.fc = nn.Linear(32, 10), nn.LayerNorm(10), nn.Linear(10, 4)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(self.first(x))))
        x = torch.relu(self.deep_norm(self.deep(x)))
        x = x + self.gamma.view(1, -1, 1, 1) * self.b(torch.relu(self.a(x)))
        return self.fc(torch.relu(self.norm(self.mix(self.pool(x).flatten(1)))))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A network, its graph and its file."""
    torch.manual_seed(0)
    model = lively(Everything())
    path = tmp_path_factory.mktemp("original") / "original.onnx"
    export_onnx(model, EXAMPLE, path)
    return model, build_graph(model, EXAMPLE), path


def trained(model, graph, kept):
    """The network pruned to ``kept``, with other weights in all layers."""
    own = copy.deepcopy(model)
    ChannelCutter(own, graph.layers).cut(kept)
    with torch.no_grad():
        for tensor in [*own.parameters(), *own.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(torch.rand(tensor.shape) + 0.5)
    return own


@pytest.mark.parametrize("branch", [True, False])
def test_the_file_is_the_exporters(original, branch, tmp_path):
    model, graph, path = original
    kept = [np.arange(site.channels)[1::2] if site.name != "a" or branch else np.arange(0) for site in graph.sites]
    own = trained(model, graph, kept)
    removed = write_rewritten(path, model, own, tmp_path / "rewritten.onnx", graph, kept)
    assert removed == export_pruned(own, EXAMPLE, tmp_path / "exported.onnx", graph, kept)
    assert bool(removed) != branch
    assert (tmp_path / "rewritten.onnx").read_bytes() == (tmp_path / "exported.onnx").read_bytes()
    costs = ResourceModel(graph, model, file_layout(path, graph, model)).cost([len(k) for k in kept])
    assert costs["size"] == (tmp_path / "rewritten.onnx").stat().st_size
    assert check_parity(own, torch.randn(5, 3, 8, 8), Runner(tmp_path / "rewritten.onnx")).largest_difference < 1e-5


class Twins(nn.Sequential):
    """Two layers with equal weights, of which the exporter keeps one."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(192, 3))
        self[2].load_state_dict(self[0].state_dict())


class Computed(nn.Module):
    """A layer whose weights the network computes from a parameter."""

    def __init__(self):
        super().__init__()
        self.scale, self.a, self.b = nn.Parameter(torch.rand(5)), nn.Linear(192, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(self.a(x.flatten(1)) * self.scale.exp())


def test_a_type_that_numpy_lacks_is_refused(original, tmp_path):
    model, graph, path = original
    kept = [np.arange(site.channels) for site in graph.sites]
    with pytest.raises(ExportError, match="no array"):
        write_rewritten(path, copy.deepcopy(model).bfloat16(), model, tmp_path / "rewritten.onnx", graph, kept)


@pytest.mark.parametrize("network", [Twins, Computed])
def test_weights_of_unknown_origin_are_refused(network, tmp_path):
    torch.manual_seed(0)
    model, path = network().eval(), tmp_path / "original.onnx"
    export_onnx(model, EXAMPLE, path)
    graph = build_graph(model, EXAMPLE)
    kept = [np.arange(site.channels) for site in graph.sites]
    with pytest.raises(ExportError, match="does not show where"):
        write_rewritten(path, model, model, tmp_path / "rewritten.onnx", graph, kept)
    assert not (tmp_path / "rewritten.onnx").exists()
