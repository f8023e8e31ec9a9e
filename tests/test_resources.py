"""Costs that are predicted from widths alone are those of the network that is really pruned."""

import warnings

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    CASES,
    EXAMPLE,
    block,
    built,
    dense,
    flattened,
    lively,
    measured,
    pruned,
    random_kept,
    squeeze_excite,
)
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from amc.graph.build import build_graph
from amc.graph.channels import Axis
from amc.space.file_size import FileLayout, StoredTensor, varint
from amc.space.resources import ResourceModel

MULTIPLYING = {"conv", "linear", "matmul", "bmm", "addmm", "einsum", "baddbmm"}


def fvcore_macs(model: nn.Module, example: Tensor) -> int:
    """What fvcore counts, without its BatchNorms and poolings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore uses torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, example).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        operators = analysis.by_operator()
    return sum(count for name, count in operators.items() if name in MULTIPLYING)


@pytest.mark.parametrize("case", CASES)
def test_costs_are_those_of_the_pruned_network(case: str) -> None:
    model, example, graph, costs = built(case)

    @settings(max_examples=3)
    @given(st.integers(0, 2**32 - 1))
    def holds(seed: int) -> None:
        kept = random_kept(graph, np.random.default_rng(seed))
        smaller = pruned(model, graph, kept)
        predicted = costs.cost([len(k) for k in kept])
        assert predicted == measured(smaller, example)
        assert predicted["macs"] == fvcore_macs(smaller, example)

    holds()


@pytest.mark.parametrize("make", [dense, flattened, squeeze_excite])
def test_costs_of_branching_networks(make) -> None:
    model = lively(make())
    graph = build_graph(model, EXAMPLE)
    kept = [np.arange(2 + index) for index, _ in enumerate(graph.sites)]
    smaller = pruned(model, graph, kept)
    assert ResourceModel(graph, model).cost([len(k) for k in kept])["macs"] == fvcore_macs(smaller, EXAMPLE)


@pytest.mark.parametrize(
    ("case", "macs", "params"),
    [
        ("resnet20", 40_813_184, 272_474),
        ("resnet56", 125_747_840, 855_770),
        ("mobilenetv2", 87_976_448, 2_236_682),
        ("vgg16bn", 313_201_664, 14_724_042),
    ],
)
def test_published_sizes(case: str, macs: int, params: int) -> None:
    """ResNet-20: 41 M and 0.27 M; ResNet-56: 126 M and 0.86 M; VGG-16: 313 M and 14.7 M."""
    _, _, graph, costs = built(case)
    cost = costs.cost([site.channels for site in graph.sites])
    assert (cost["macs"], cost["params"]) == (macs, params)


def test_hand_made_sum() -> None:
    """3→8 and 8→6 convolutions on 8×8 images with BatchNorm, then 6→10: widths 2 and 5."""
    model = lively(nn.Sequential(block(3, 8), block(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)))
    costs = ResourceModel(build_graph(model, EXAMPLE), model)
    assert costs.cost([2, 5]) == {
        "macs": 64 * 9 * (3 * 2 + 2 * 5) + 5 * 10,
        "params": 9 * (3 * 2 + 2 * 5) + 2 * (2 + 5) + 5 * 10 + 10,
        "memory": 4 * 64 * (2 + 5),  # input and output of the second convolution
    }
    assert costs.cost([2, 1])["memory"] == 4 * 64 * (3 + 2)  # now of the first


@settings(max_examples=15)
@given(case=st.sampled_from(sorted(CASES)), seed=st.integers(0, 2**32 - 1))
def test_no_cost_falls_when_a_site_grows(case: str, seed: int) -> None:
    _, _, graph, costs = built(case)
    rng = np.random.default_rng(seed)
    full = np.array([site.channels for site in graph.sites])
    base = rng.integers(1, full)  # at least one channel below the full width
    wider = base + np.eye(len(full), dtype=int)
    before, after = costs.cost(base), costs.costs(wider)
    assert (after["macs"] > before["macs"]).all()
    assert (after["params"] > before["params"]).all()
    assert (after["memory"] >= before["memory"]).all()


def test_many_policies_at_once_cost_what_each_costs() -> None:
    _, _, graph, costs = built("mobilenetv1")
    rng = np.random.default_rng(0)
    choices = rng.integers(1, [site.channels + 1 for site in graph.sites], (5, len(graph.sites)))
    together = costs.costs(choices)
    assert set(together) == {"macs", "params", "memory"}
    for row, choice in enumerate(choices):
        assert {name: values[row] for name, values in together.items()} == costs.cost(choice)


# Size of the ONNX file


@given(st.integers(0, 2**62 - 1))
def test_varint(value: int) -> None:
    assert varint(value) == max(1, -(-value.bit_length() // 7))


@given(st.integers(1, 8), st.integers(0, 1))
def test_varint_at_the_steps(groups: int, below: int) -> None:
    assert varint(2 ** (7 * groups) - below) == groups + 1 - below


def onnx_file(model: nn.Module, depthwise: int) -> onnx.ModelProto:
    """Weights as raw bytes, and a node with the ``group`` attribute of the depthwise layer."""
    tensors = [numpy_helper.from_array(p.detach().numpy(), name) for name, p in model.named_parameters()]
    node = helper.make_node("Conv", ["x", "middle.0.weight"], ["y"], group=depthwise)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in "xy"]
    return helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], tensors))


@settings(max_examples=20)
@given(st.integers(1, 200), st.integers(1, 200))
def test_file_size_is_exact_to_the_byte(first: int, second: int) -> None:
    """Across the widths where protobuf's length prefixes grow (128 and 16,384 bytes, 128 channels)."""
    model, graph, costs = stored()
    smaller = pruned(model, graph, [np.arange(first), np.arange(second)])
    assert costs.cost([first, second])["size"] == onnx_file(smaller, first).ByteSize()


def stored() -> tuple:
    """A network with 200-channel sites and the costs with its file's layout; built once."""
    if not hasattr(stored, "made"):
        from networks import Net, pool

        model = Net(
            lambda m, x: m.fc(pool(m.c(m.middle(m.a(x))))),
            a=nn.Conv2d(3, 200, 1), middle=nn.Sequential(nn.Conv2d(200, 200, 3, groups=200)),
            c=nn.Conv2d(200, 200, 1), fc=nn.Linear(200, 10),
        ).eval()  # fmt: skip
        graph = build_graph(model, EXAMPLE)
        layers = {layer.name: layer for layer in graph.layers}
        file = onnx_file(model, 200)
        tensors = []
        for tensor in file.graph.initializer:
            layer, _, key = tensor.name.rpartition(".")
            axes: list[Axis | None] = [None] * len(tensor.dims)
            axes[0] = layers[layer].output
            if len(axes) > 1 and not layers[layer].by_group:
                axes[1] = layers[layer].input
            dims, raw = tuple(tensor.dims), len(tensor.raw_data)
            fixed = tensor.ByteSize() - raw - int(varint(raw)) - int(varint(dims).sum())
            per_group = int(layers[layer].by_group and key == "weight")
            tensors.append(StoredTensor(dims, tuple(axes), 4, fixed, per_group))
        layout = FileLayout(file.ByteSize(), file.graph.ByteSize(), tuple(tensors))
        stored.made = model, graph, ResourceModel(graph, model, layout)  # type: ignore[attr-defined]
    return stored.made  # type: ignore[attr-defined]


def test_size_is_told_only_with_a_layout() -> None:
    assert "size" not in built("resnet8")[3].cost([1] * 6)
    assert "size" in stored()[2].cost([1, 1])


def test_axis_lengths_are_linear() -> None:
    """Two sites and two fixed positions on one axis; site 1 has two positions a channel."""
    axis = Axis(np.array([0, 0, -1, 1, 1, 1, 1, -1]), np.array([0, 1, -1, 0, 0, 1, 1, -1]))
    slopes, constant = axis.counts(3)
    assert (slopes.tolist(), constant) == ([1, 2, 0], 2)
    assert axis.kept([np.array([1]), np.array([0]), np.array([0])]).tolist() == [1, 2, 3, 4, 7]
