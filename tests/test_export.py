"""The exported file: its exact size is known beforehand, it does what the network does, it tells no secrets."""

import copy

import numpy as np
import onnx
import pytest
import torch
from networks import Net
from onnx import numpy_helper
from torch import nn

from amc.deploy.export import check_parity, export_onnx, file_layout, read_onnx
from amc.deploy.onnx_macs import count_onnx_macs
from amc.errors import ExportError
from amc.graph.surgery import ChannelCutter
from amc.graph.trace import trace
from amc.latency import Runner, measure
from amc.operators.channels import legal_widths
from amc.space.resources import ResourceModel


def pruned(model: nn.Module, graph, seed: int):
    rng = np.random.default_rng(seed)
    choice = [int(rng.choice(legal_widths(s.channels, 0.1, 1))) for s in graph.sites]
    own = copy.deepcopy(model)
    ChannelCutter(own, graph.layers).cut(
        [np.sort(rng.permutation(s.channels)[:w]) for s, w in zip(graph.sites, choice, strict=True)]
    )
    return choice, own


def test_size_and_macs_of_a_policy_are_those_of_its_file(resnet8, tmp_path):
    graph, model = resnet8
    example = torch.randn(1, 1, 8, 8)
    export_onnx(model, example, tmp_path / "original.onnx")
    resources = ResourceModel(graph, model, file_layout(tmp_path / "original.onnx", graph, model))
    for seed in range(3):
        choice, own = pruned(model, graph, seed)
        export_onnx(own, example, tmp_path / "pruned.onnx")
        path, predicted = tmp_path / "pruned.onnx", resources.cost(choice)
        assert (path.stat().st_size, count_onnx_macs(path, example)) == (predicted["size"], predicted["macs"])
        parity = check_parity(own, torch.randn(4, 1, 8, 8), Runner(tmp_path / "pruned.onnx"))
        assert parity.largest_difference < 1e-4


def test_depthwise_convolutions_are_counted_too(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 200, 1), nn.BatchNorm2d(200), nn.ReLU(), nn.Conv2d(200, 200, 3, groups=200), nn.Conv2d(200, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    from amc.graph.build import build_graph

    example = torch.randn(1, 3, 8, 8)
    graph = build_graph(model, example)
    export_onnx(model, example, tmp_path / "original.onnx")
    resources = ResourceModel(graph, model, file_layout(tmp_path / "original.onnx", graph, model))
    own = copy.deepcopy(model)
    ChannelCutter(own, graph.layers).cut([np.arange(100)])  # 'group' then needs one byte less
    export_onnx(own, example, tmp_path / "pruned.onnx")
    assert resources.cost([100])["size"] == (tmp_path / "pruned.onnx").stat().st_size
    assert count_onnx_macs(tmp_path / "pruned.onnx", example) == resources.cost([100])["macs"]


def test_transposed_weights_are_found_by_what_they_hold(tmp_path):
    """A linear layer over [N, T, C] is exported as MatMul with its weight transposed and renamed."""
    from amc.graph.build import build_graph

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 6)).eval()
    example = torch.randn(1, 5, 6)
    graph = build_graph(model, example)
    export_onnx(model, example, tmp_path / "original.onnx")
    resources = ResourceModel(graph, model, file_layout(tmp_path / "original.onnx", graph, model))
    own = copy.deepcopy(model)
    ChannelCutter(own, graph.layers).cut([np.arange(9)])
    export_onnx(own, example, tmp_path / "pruned.onnx")
    assert resources.cost([9])["size"] == (tmp_path / "pruned.onnx").stat().st_size
    assert resources.cost([9])["macs"] == count_onnx_macs(tmp_path / "pruned.onnx", example) == 2 * 5 * 6 * 9


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_a_file_are_counted(kind, tmp_path):
    model = kind(8, 5, bidirectional=True, batch_first=True).eval()
    example = torch.randn(1, 6, 8)
    export_onnx(model, example, tmp_path / "model.onnx")
    assert count_onnx_macs(tmp_path / "model.onnx", example) == trace(model, example).macs


def test_an_einsum_of_a_file_is_counted(tmp_path):
    model = Net(lambda m, x: torch.einsum("bij,bkj->bik", x, m.l(x)), l=nn.Linear(8, 8)).eval()
    example = torch.randn(1, 6, 8)
    export_onnx(model, example, tmp_path / "model.onnx")
    assert count_onnx_macs(tmp_path / "model.onnx", example) == trace(model, example).macs == 6 * 6 * 8 + 6 * 8 * 8


def write_onnx(path, nodes):
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in ("input", "y"))
    versions = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("own", 1)]
    weights = [numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=versions), path
    )


def test_what_cannot_be_counted_in_a_file_is_not_counted_as_0(tmp_path):
    path, make = tmp_path / "model.onnx", onnx.helper.make_node
    z = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 4])
    inside = onnx.helper.make_graph([make("MatMul", ["input", "w"], ["z"])], "inside", [], [z])
    yes = make("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    write_onnx(path, [yes, make("If", ["c"], ["y"], then_branch=inside, else_branch=inside)])
    with pytest.raises(ExportError, match=r"the MACs of If in the ONNX file cannot be counted"):
        count_onnx_macs(path, torch.ones(1, 4))
    write_onnx(path, [make("Other", ["input"], ["h"], domain="own"), make("MatMul", ["h", "w"], ["y"])])
    with pytest.raises(ExportError, match=r"the shape of 'h' in model.onnx is not known"):
        count_onnx_macs(path, torch.ones(1, 4))


def test_a_network_that_differs_from_its_file_is_refused(resnet8, tmp_path):
    _, model = resnet8
    export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / "model.onnx")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.bias += 1
    with pytest.raises(ExportError, match="outputs differ from torch's"):
        check_parity(other, torch.randn(4, 1, 8, 8), Runner(tmp_path / "model.onnx"))


def test_a_network_that_no_onnx_file_holds_is_refused_before_it_is_exported(tmp_path):
    model = nn.Linear(1, 1)
    model.weight = nn.Parameter(torch.zeros(1).expand(2**29))  # takes no memory
    with pytest.raises(ExportError, match=r"2\.0 GiB, and an ONNX file holds 2 GiB at most"):
        export_onnx(model, torch.randn(1, 1), tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"not onnx", bytes(1000)])
def test_a_file_that_is_not_onnx_is_one_line(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for reader in (read_onnx, Runner):
        with pytest.raises(ExportError) as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_measuring_finds_the_slower_network_and_gives_the_same_network_one(tmp_path):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    large = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3))
    example = torch.randn(1, 3, 32, 32)
    for name, model in (("small", small), ("large", large)):
        export_onnx(model, example, tmp_path / f"{name}.onnx")
    paths = {name: tmp_path / f"{name.split('-')[0]}.onnx" for name in ("large", "small", "large-again")}
    found = measure(paths, example.numpy(), seconds=3.0)
    assert found.baseline == "large"
    assert found.rounds >= 40
    assert found.latencies["large"].ratio == 1.0
    assert found.latencies["small"].ratio_high < 0.8  # 25 times fewer MACs
    again = found.latencies["large-again"]
    assert again.ratio_low <= again.ratio <= again.ratio_high
    assert all(0 < x.min_ms <= x.p10_ms <= x.median_ms for x in found.latencies.values())


def test_translations_are_built_once_and_torch_is_left_as_it_was(tmp_path, monkeypatch):
    """Files are the same as with a table of their own."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    before, built = vars(ONNXRegistry)["from_torchlib"], []

    def counted(cls, *args, **options):
        built.append(cls)
        return before.__func__(cls, *args, **options)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(counted))
    patched, (model, example) = vars(ONNXRegistry)["from_torchlib"], (nn.Linear(3, 2).eval(), torch.randn(1, 3))
    for name in ("first", "second"):
        export_onnx(model, example, tmp_path / name)
    assert len(built) == 1
    assert vars(ONNXRegistry)["from_torchlib"] is patched
    monkeypatch.setattr("amc.deploy.translations._class_of_tables", lambda: None)
    export_onnx(model, example, tmp_path / "own")
    assert len(built) == 2
    assert {(tmp_path / name).read_bytes() for name in ("first", "second", "own")} == {(tmp_path / "own").read_bytes()}
