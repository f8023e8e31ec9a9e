"""ONNX operators as torch modules: each computes what ONNX Runtime does, for one sample and for several."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import amc
from amc.cli import main
from amc.errors import ModelError
from amc.graph.build import build_graph
from amc.onnx_import import build_model, read_graph, supported_operators

RANDOM = np.random.default_rng(0)
KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def weights(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs, constants=None, outputs=("y",), opset=17, batch="N", path=None):
    """A checked model; ``inputs``: name → array ``[1, ...]``."""
    values = [helper.make_tensor_value_info(n, KINDS[str(a.dtype)], [batch, *a.shape[1:]]) for n, a in inputs.items()]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", values, results, held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 9 if opset < 23 else 11
    for value in onnx.shape_inference.infer_shapes(proto).graph.output:
        next(v for v in proto.graph.output if v.name == value.name).CopyFrom(value)
    for value in proto.graph.output:
        value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
    if path is not None:
        onnx.save(proto, path)
    return proto


def compare(tmp_path, nodes, inputs, constants=None, outputs=("y",), opset=17, batch="N", tolerance=1e-5):
    """Translate and compare with ONNX Runtime, for one sample and, if the batch is open, for three. The module."""
    path = tmp_path / "x.onnx"
    proto = model_of(nodes, inputs, constants, outputs, opset, batch, path)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    module = build_model(read_graph(path), {name: torch.from_numpy(a) for name, a in inputs.items()})
    for count in (1, 3):
        feeds = {name: np.concatenate([a, *(np.flip(a, -1) for _ in range(count - 1))]) for name, a in inputs.items()}
        rows = [feeds] if batch == "N" else [{n: a[i : i + 1] for n, a in feeds.items()} for i in range(count)]
        wanted = [np.concatenate(column) for column in zip(*(session.run(None, row) for row in rows), strict=True)]
        with torch.no_grad():
            found = module(**{name: torch.from_numpy(a.copy()) for name, a in feeds.items()})
        found = list(found.values()) if isinstance(found, dict) else [found]
        for a, b in zip(found, wanted, strict=True):
            assert a.numpy().dtype == b.dtype
            assert a.shape == b.shape
            np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=tolerance)
    return module


def node(op, inputs="x", outputs="y", **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"{op}_{outputs.split()[0]}", **attributes)


X = weights(1, 4, 6, 5)
POSITIVE = np.abs(X) + 0.1

UNARY = [
    "Abs", "Atan", "Asinh", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN", "Mish", "Neg",
    "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "Cosh",
    "GlobalAveragePool", "GlobalMaxPool", "IsInf", "MeanVarianceNormalization", "Selu", "Celu", "Elu", "HardSigmoid",
    "LeakyRelu", "ThresholdedRelu", "Shrink", "Dropout", "Transpose", "Flatten", "LogSoftmax", "Softmax",
]  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_operators_of_one_tensor(op, tmp_path):
    compare(tmp_path, [node(op)], {"x": X}, opset=18)


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Acosh"])
def test_operators_of_positive_numbers(op, tmp_path):
    compare(tmp_path, [node(op)], {"x": POSITIVE + 1})


@pytest.mark.parametrize("op", ["Acos", "Asin", "Atanh"])
def test_operators_of_small_numbers(op, tmp_path):
    compare(tmp_path, [node(op)], {"x": np.tanh(X) * 0.9})


WITH_ATTRIBUTES = [
    ("Celu", {"alpha": 0.7}, 17), ("Elu", {"alpha": 0.7}, 17), ("LeakyRelu", {"alpha": 0.2}, 17),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 17), ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 17),
    ("Selu", {"alpha": 1.5, "gamma": 1.1}, 17), ("Shrink", {"lambd": 0.3, "bias": 0.1}, 17),
    ("ThresholdedRelu", {"alpha": 0.4}, 17), ("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20),
    ("Softmax", {"axis": 1}, 17), ("Softmax", {"axis": 2}, 11), ("Softmax", {}, 11), ("LogSoftmax", {"axis": -2}, 17),
    ("Flatten", {"axis": 2}, 17), ("Flatten", {"axis": -1}, 17), ("Transpose", {"perm": [0, 3, 1, 2]}, 17),
    ("LRN", {"size": 3, "alpha": 0.01}, 17), ("LpNormalization", {"axis": 1, "p": 2}, 17),
    ("Cast", {"to": TensorProto.INT64}, 17), ("Cast", {"to": TensorProto.BOOL}, 17),
    ("DepthToSpace", {"blocksize": 2}, 17), ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, 17),
    ("ArgMax", {"axis": 1}, 17), ("ArgMin", {"axis": -1, "keepdims": 0}, 17),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 17),
    ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}, 17),
    ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, 17),
    ("MaxPool", {"kernel_shape": [3, 2], "pads": [0, 1, 2, 0], "dilations": [1, 2]}, 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 17),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1, "strides": [2, 1]}, 17),
    ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}, 17),
    ("AveragePool", {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}, 17),
    *[(f"Reduce{word}", {"axes": [1, -1], "keepdims": keep}, 11)
      for word in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare", "LogSumExp") for keep in (0, 1)],
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes", "opset"), WITH_ATTRIBUTES)
def test_operators_with_attributes(op, attributes, opset, tmp_path):
    compare(tmp_path, [node(op, **attributes)], {"x": X}, opset=opset)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Pow", "Greater", "Less",
                                "GreaterOrEqual", "LessOrEqual", "Equal"])  # fmt: skip
@pytest.mark.parametrize("other", ["tensor", "number", "channels", "first"])
def test_operators_of_two_tensors(op, other, tmp_path):
    second = {"tensor": POSITIVE[:, :1], "number": np.float32(2), "channels": weights(4, 1, 1), "first": weights(1)}
    if other == "tensor":
        compare(tmp_path, [node(op, "x z")], {"x": POSITIVE, "z": second["tensor"]})
    elif other == "first":
        compare(tmp_path, [node(op, "c x")], {"x": POSITIVE}, {"c": np.abs(second["first"])})
    else:
        compare(tmp_path, [node(op, "x c")], {"x": POSITIVE}, {"c": second[other]}, tolerance=1e-4)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logical_operators(op, tmp_path):
    compare(tmp_path, [node(op, "x z"), node("Not", "y", "n")], {"x": X > 0, "z": X > 0.5}, outputs=("y", "n"))


@pytest.mark.parametrize("op", ["Add", "Div", "Mod", "Mul", "Sub"])
def test_whole_numbers(op, tmp_path):
    whole = RANDOM.integers(-9, 9, (1, 7))
    compare(tmp_path, [node(op, "x c")], {"x": whole}, {"c": np.array([3])})


def test_clip_where_and_others(tmp_path):
    nodes = [
        node("Clip", "x low high", "a"), node("Clip", "x zero six", "b"), node("Clip", "x  high", "c"),
        node("Greater", "x zero", "g"), node("Where", "g x low", "d"), node("Where", "g low high", "e"),
        node("CumSum", "x axis", "f"), node("CumSum", "x axis", "h", reverse=1, exclusive=1),
        node("TopK", "x k", "i j", axis=1), node("PRelu", "x slope", "l"), node("Trilu", "x", "m", upper=0),
        node("Mod", "x high", "n", fmod=1), node("Einsum", "x x", "o", equation="bchw,bchv->bcwv"),
        node("OneHot", "j depth values", "p"),
    ]  # fmt: skip
    constants = {
        "low": np.float32(-0.5), "high": np.float32(0.7), "zero": np.float32(0), "six": np.float32(6),
        "axis": np.array(2), "k": np.array([2]), "slope": np.abs(weights(4, 1, 1)), "depth": np.array(6),
        "values": np.array([0.0, 2.0], np.float32),
    }  # fmt: skip
    names = tuple("abcdefhijlmnop")
    nodes[2] = helper.make_node("Clip", ["x", "", "high"], ["c"])
    compare(tmp_path, nodes, {"x": X}, constants, names)


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes",
    [{}, {"pads": [1, 1, 1, 1]}, {"strides": [2, 1], "dilations": [1, 2]}, {"auto_pad": "SAME_LOWER"},
     {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "VALID"}, {"pads": [0, 1, 2, 0]}],
)  # fmt: skip
@pytest.mark.parametrize("group", [1, 2, 4])
def test_convolutions_are_layers(attributes, group, tmp_path):
    constants = {"layer.weight": weights(8, 4 // group, 3, 2), "layer.bias": weights(8)}
    nodes = [node("Conv", "x layer.weight layer.bias", group=group, **attributes)]
    module = compare(tmp_path, nodes, {"x": X}, constants)
    assert isinstance(module.get_submodule("layer"), nn.Conv2d)


@pytest.mark.parametrize(
    "attributes", [{}, {"strides": [2, 2], "pads": [1, 0, 1, 0], "output_padding": [1, 1]}, {"group": 2}]
)
def test_transposed_convolutions_are_layers(attributes, tmp_path):
    constants = {"up.weight": weights(4, 6 // attributes.get("group", 1), 3, 2), "up.bias": weights(6)}
    module = compare(tmp_path, [node("ConvTranspose", "x up.weight up.bias", **attributes)], {"x": X}, constants)
    assert isinstance(module.up, nn.ConvTranspose2d)


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 4, 5, 4, 3)])
def test_convolutions_along_one_and_three_axes(shape, tmp_path):
    kernel = weights(6, 4, *[2] * (len(shape) - 2))
    compare(tmp_path, [node("Conv", "x w")], {"x": weights(*shape)}, {"w": kernel}, tolerance=1e-4)


def test_a_convolution_with_a_computed_kernel(tmp_path):
    nodes = [node("ReduceMean", "z", "s", axes=[0, 1, 2, 3], keepdims=0), node("Mul", "w s", "v"), node("Conv", "x v")]
    path = tmp_path / "x.onnx"
    model_of(nodes, {"x": X, "z": X}, {"w": weights(8, 4, 3, 3)}, path=path)
    found = build_model(read_graph(path), {"x": torch.from_numpy(X), "z": torch.ones(1, 4, 6, 5)})
    assert found(torch.from_numpy(X), torch.ones(1, 4, 6, 5)).shape == (1, 8, 4, 3)


@pytest.mark.parametrize(
    ("transposed", "alpha", "bias"), [(0, 1.0, None), (1, 0.5, (3,)), (1, 1.0, (1, 3)), (0, 2.0, ())]
)
def test_gemm_is_a_linear_layer(transposed, alpha, bias, tmp_path):
    constants = {"w": weights(3, 5) if transposed else weights(5, 3)}
    constants |= {} if bias is None else {"b": weights(*bias)}
    nodes = [node("Gemm", " ".join(["x", *constants]), transB=transposed, alpha=alpha, beta=0.5)]
    module = compare(tmp_path, nodes, {"x": weights(1, 5)}, constants)
    assert [type(m) for m in module.modules() if isinstance(m, nn.Linear)] == [nn.Linear]


def test_a_product_and_a_sum_with_constants_are_one_linear_layer(tmp_path):
    nodes = [
        node("Transpose", "dense.weight", "t", perm=[1, 0]),
        node("MatMul", "x t", "p"),
        node("Add", "dense.bias p"),
    ]
    module = compare(
        tmp_path, nodes, {"x": weights(1, 7, 5)}, {"dense.weight": weights(3, 5), "dense.bias": weights(3)}
    )
    assert isinstance(module.dense, nn.Linear)
    assert module.dense.bias is not None
    assert len(module._steps) == 1


def test_a_product_that_is_read_twice_keeps_its_sum(tmp_path):
    nodes = [node("MatMul", "x w", "p"), node("Add", "p b"), node("Relu", "p", "z")]
    compare(tmp_path, nodes, {"x": weights(1, 5)}, {"w": weights(5, 3), "b": weights(3)}, ("y", "z"))


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_batch_norms_are_layers(rank, tmp_path):
    x = weights(1, 4, 3, 2, 2)[(slice(None),) * 2 + (0,) * (5 - rank)]
    constants = {"bn.weight": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4)) + 0.1}
    nodes = [node("BatchNormalization", "x bn.weight b m v", epsilon=1e-3)]
    module = compare(tmp_path, nodes, {"x": x}, constants)
    assert isinstance(module.bn, nn.modules.batchnorm._BatchNorm)


def test_other_normalisations_are_layers(tmp_path):
    nodes = [node("LayerNormalization", "x s b", "a"), node("LayerNormalization", "x s", "c", axis=-1),
             node("InstanceNormalization", "x k l", "d")]  # fmt: skip
    constants = {"s": weights(5), "b": weights(5), "k": weights(4), "l": weights(4)}
    module = compare(tmp_path, nodes, {"x": X}, constants, ("a", "c", "d"))
    assert sum(isinstance(m, nn.LayerNorm) for m in module.modules()) == 2
    nodes = [node("GroupNormalization", "x k l", num_groups=2)]
    compare(tmp_path, nodes, {"x": X}, {"k": weights(4), "l": weights(4)}, opset=21)


def test_tables_are_embeddings(tmp_path):
    module = compare(tmp_path, [node("Gather", "table x")], {"x": np.array([[3, 0, 2]])}, {"table": weights(5, 4)})
    assert isinstance(next(m for m in module.modules() if isinstance(m, nn.Embedding)), nn.Embedding)


def test_layers_that_share_a_weight_share_it_here(tmp_path):
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w")]
    module = compare(tmp_path, nodes, {"x": weights(1, 4)}, {"w": weights(4, 4)})
    assert len(list(module.parameters())) == 1


# --- moves and sizes ----------------------------------------------------------------------------------------------


def ints(*values):
    return np.array(values, np.int64)


MOVES = {
    "reshape": ("Reshape", {"c": ints(0, -1)}, {}),
    "reshape to parts": ("Reshape", {"c": ints(-1, 2, 2, 30)}, {}),
    "reshape copies": ("Reshape", {"c": ints(0, 2, 2, 30)}, {}),
    "unsqueeze": ("Unsqueeze", {"c": ints(1, -1)}, {}),
    "slices": ("Slice", {"s": ints(1, -3), "e": ints(3, 1 << 60), "a": ints(1, 2), "t": ints(1, 2)}, {}),
    "second half": ("Slice", {"s": ints(2), "e": ints(4), "a": ints(1)}, {}),
    "first half": ("Slice", {"s": ints(0), "e": ints(-2), "a": ints(1)}, {}),
    "backwards": ("Slice", {"s": ints(-1), "e": ints(-(1 << 60)), "a": ints(3), "t": ints(-1)}, {}),
    "backwards in part": ("Slice", {"s": ints(4), "e": ints(0), "a": ints(3), "t": ints(-2)}, {}),
    "gather several": ("Gather", {"c": ints(0, -1, 2)}, {"axis": 2}),
    "gather a number": ("Gather", {"c": np.array(-1)}, {"axis": 1}),
    "gather one": ("Gather", {"c": ints(1)}, {"axis": 3}),
    "gather a matrix": ("Gather", {"c": np.array([[0, 1], [3, 2]])}, {"axis": 1}),
    "pad": ("Pad", {"c": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {}),
    "pad channels": ("Pad", {"c": ints(0, 1, 0, 0, 0, 2, 0, 0), "v": np.float32(3)}, {}),
    "reflect": ("Pad", {"c": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {"mode": "reflect"}),
    "edge": ("Pad", {"c": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {"mode": "edge"}),
    "tile": ("Tile", {"c": ints(1, 2, 1, 3)}, {}),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name, tmp_path):
    op, constants, attributes = MOVES[name]
    compare(tmp_path, [node(op, " ".join(["x", *constants]), **attributes)], {"x": X}, constants)


def test_more_moves(tmp_path):
    nodes = [
        node("Unsqueeze", "x last", "u"), node("Squeeze", "u last", "a"), node("Concat", "x x", "b", axis=1),
        node("Pad", "x pads", "p"), node("SpaceToDepth", "p", "c", blocksize=2), node("ReduceMean", "x", "m", axes=[1]),
        node("Expand", "m shape", "d"), node("Cast", "z", "i", to=TensorProto.INT64),
        node("GatherElements", "x i", "e", axis=3),
    ]  # fmt: skip
    constants = {"last": ints(4), "pads": ints(0, 0, 0, 0, 0, 0, 0, 1), "shape": ints(1, 4, 6, 5)}
    compare(tmp_path, nodes, {"x": X, "z": np.abs(X[..., :2])}, constants, tuple("abcde"))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_splits(opset, tmp_path):
    def split(inputs, outputs, lengths=None, **attributes):
        if opset >= 13 and lengths is not None:
            return node("Split", f"{inputs} {lengths}", outputs, **attributes)
        return node("Split", inputs, outputs, **attributes)

    equal = {"num_outputs": 2} if opset >= 18 else {}
    unequal = {"split": [1, 3]} if opset < 13 else {}
    nodes = [split("x", "a b", axis=1, **equal), split("x", "c d", "l", axis=1, **unequal)]
    compare(tmp_path, nodes, {"x": X}, {"l": ints(1, 3)} if opset >= 13 else {}, tuple("abcd"), opset)


RESIZES = [
    ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, [1, 1, 2, 2], None),
    ({"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}, [1, 1, 2, 3], None),
    ({"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}, None, [1, 4, 3, 4]),
    (
        {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"},
        None,
        [1, 4, 9, 8],
    ),
    ({"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, None, [1, 4, 12, 7]),
    ({"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, [1, 1, 2, 2], None),
    ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, None, [1, 4, 9, 9]),
    ({"mode": "cubic", "coordinate_transformation_mode": "half_pixel"}, None, [1, 4, 12, 10]),
]


@pytest.mark.parametrize(("attributes", "scales", "sizes"), RESIZES)
def test_resizes(attributes, scales, sizes, tmp_path):
    names = ["x", "", "c"] if scales else ["x", "", "", "c"]
    constants = {"c": np.array(scales, np.float32) if scales else ints(*sizes)}
    nodes = [helper.make_node("Resize", names, ["y"], **attributes)]
    if sizes:  # those of the batch, too, so the batch is fixed
        compare(tmp_path, nodes, {"x": X}, constants, batch=1, tolerance=1e-4)
    else:
        compare(tmp_path, nodes, {"x": X}, constants, tolerance=1e-4)


def test_a_shape_is_computed_from_the_inputs_as_exporters_write_it(tmp_path):
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n axes", "n1"),
        node("Gather", "s two", "h"), node("Gather", "s three", "w"), node("Mul", "h w", "hw"),
        node("Unsqueeze", "hw axes", "hw1"), node("Concat", "n1 minus hw1", "shape", axis=0),
        node("Reshape", "x shape", "r"),
        node("Shape", "r", "s2"), node("Slice", "s2 one two1", "c"), node("Cast", "c", "cf", to=TensorProto.FLOAT),
        node("Sqrt", "cf", "root"), node("Div", "r root"),
    ]  # fmt: skip
    constants = {"zero": np.array(0), "two": np.array(2), "three": np.array(3), "axes": ints(0), "minus": ints(-1),
                 "one": ints(1), "two1": ints(2)}  # fmt: skip
    compare(tmp_path, nodes, {"x": X}, constants)


def test_a_vector_is_expanded_to_the_batch(tmp_path):
    nodes = [
        node("Shape", "x", "s"), node("Slice", "s zero one", "n"), node("Concat", "n rest", "shape", axis=0),
        node("Equal", "shape minus", "e"), node("Where", "e ones shape", "final"), node("Expand", "token final", "t"),
        node("Concat", "t x", axis=1),
    ]  # fmt: skip
    constants = {"zero": ints(0), "one": ints(1), "rest": ints(-1, -1), "minus": ints(-1, -1, -1),
                 "ones": ints(1, 1, 1), "token": weights(1, 1, 5)}  # fmt: skip
    module = compare(tmp_path, nodes, {"x": weights(1, 7, 5)}, constants)
    assert module.token.requires_grad


def test_a_file_for_one_batch_size_works_for_all(tmp_path):
    nodes = [
        node("Reshape", "x windows", "w"), node("MatMul", "w m", "p"), node("Reshape", "p back", "b"),
        node("Concat", "token b", "t", axis=1), node("Reshape", "t flat"),
    ]  # fmt: skip
    constants = {"windows": ints(4, 6, 5), "m": weights(5, 5), "back": ints(1, 24, 5), "token": weights(1, 1, 5),
                 "flat": ints(1, 125)}  # fmt: skip
    compare(tmp_path, nodes, {"x": X}, constants, batch=1)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_windows_of_any_kind(kernel, stride, dilation, before, after, up):
    assume(max(before, after) < kernel)
    size = 7 + before + after - dilation * (kernel - 1)
    assume(size > 0)
    attributes = {"kernel_shape": [kernel], "strides": [stride], "pads": [before, after], "dilations": [dilation]}
    x = weights(1, 2, 7)
    proto = model_of([node("MaxPool", **attributes, ceil_mode=int(up and before == after))], {"x": x})
    wanted = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    from amc.onnx_import.module import compute
    from amc.onnx_import.node import Node

    found = compute(
        Node("MaxPool", "", {**attributes, "ceil_mode": int(up and before == after)}, 17), [torch.from_numpy(x)]
    )
    np.testing.assert_allclose(found.numpy(), wanted)


def test_the_table_names_what_is_there():
    assert len(supported_operators()) > 120
    assert {"Conv", "MatMul", "Shape", "Resize"} <= set(supported_operators())


# --- pruning ------------------------------------------------------------------------------------------------------


def test_sizes_in_the_file_follow_pruning(tmp_path):
    nodes = [
        node("Conv", "x a.weight", "a"), node("Reshape", "a groups", "g"),
        node("Transpose", "g", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t whole", "s"), node("Split", "s", "l r", axis=1), node("Mul", "l r", "m"),
        node("Conv", "m b.weight", "b"), node("GlobalAveragePool", "b", "p"), node("Reshape", "p flat", "f"),
        node("Gemm", "f c.weight", transB=1),
    ]  # fmt: skip
    constants = {"a.weight": weights(16, 4, 1, 1), "groups": ints(1, 2, 8, 6, 5), "whole": ints(1, 16, 6, 5),
                 "b.weight": weights(12, 8, 1, 1), "flat": ints(1, 12), "c.weight": weights(3, 12)}  # fmt: skip
    module = compare(tmp_path, nodes, {"x": X}, constants, batch=1, tolerance=1e-4)
    graph = build_graph(module, torch.from_numpy(X))
    assert {site.name: site.channels for site in graph.sites}["b"] == 12
    assert "a" in {site.name for site in graph.sites}


# --- what is refused ----------------------------------------------------------------------------------------------


def refused(path: Path, inputs):
    with pytest.raises(ModelError) as caught:
        build_model(read_graph(path), {name: torch.from_numpy(a) for name, a in inputs.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


REFUSED = [
    ([node("NonZero")], {}, "NonZero"), ([node("Bernoulli")], {}, "Bernoulli"),
    ([node("Cast", "x", "i", to=7), node("ReduceMax", "i", "s", axes=[0, 1, 2], keepdims=0), node("Reshape", "x s")],
     {}, "computed from a tensor's values"),
    ([node("ConstantOfShape", "c")], {"c": ints(1 << 20, 1 << 20)}, "elements"),
    ([node("Expand", "x c")], {"c": ints(1 << 30, 4, 6, 5)}, "elements"),
    ([node("Tile", "x c")], {"c": ints(1, 1 << 40, 1, 1)}, "elements"),
    ([node("DynamicQuantizeLinear", "x", "y a b")], {}, "quantised"),
    ([node("MaxPool", "x", "y z", kernel_shape=[2, 2])], {}, "only the first 1"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "constants", "told"), REFUSED, ids=[told for *_, told in REFUSED])
def test_operators_that_are_refused(nodes, constants, told, tmp_path):
    path = tmp_path / "x.onnx"
    outputs = tuple(nodes[-1].output) if len(nodes[-1].output) == 2 else ("y",)
    graph = helper.make_graph(
        nodes, "bad", [helper.make_tensor_value_info("x", 1, ["N", 4, 6, 5])],
        [helper.make_tensor_value_info(name, 1, []) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )  # fmt: skip
    for value in graph.output:
        value.type.tensor_type.elem_type = 2 if "Quantize" in nodes[0].op_type else 7 if value.name == "z" else 1
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(proto.SerializeToString())
    assert told in refused(path, {"x": X})


def broken(kind, tmp_path):
    path = tmp_path / "x.onnx"
    proto = model_of([node("Conv", "x w")], {"x": X}, {"w": weights(8, 4, 3, 3)})
    content = None
    if kind == "truncated":
        content = proto.SerializeToString()[:-200]
    elif kind == "text":
        content = b"no model"
    elif kind == "empty":
        content = b""
    elif kind == "cycle":
        proto.graph.node.extend([node("Relu", "b", "a"), node("Relu", "a", "b")])
    elif kind == "nowhere":
        proto.graph.node[0].input[1] = "missing"
    elif kind == "domain":
        proto.graph.node.add(op_type="Own", domain="my.company", input=["x"], output=["z"])
        proto.opset_import.add(domain="my.company", version=1)
    elif kind == "opset":
        proto.opset_import[0].version = 9
    elif kind == "loop":
        body = helper.make_graph([], "body", [], [])
        proto.graph.node.add(op_type="Loop", input=["", ""], output=["z"]).attribute.append(
            helper.make_attribute("body", body)
        )
    elif kind in ("outside", "absolute", "link", "fifo"):
        tensor = proto.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        place = {"outside": "../secret", "absolute": "/etc/passwd", "link": "link", "fifo": "fifo"}[kind]
        tensor.external_data.add(key="location", value=place)
        if kind == "link":
            (tmp_path / "link").symlink_to("/etc/passwd")
        if kind == "fifo":
            import os

            os.mkfifo(tmp_path / "fifo")
    elif kind == "type":
        proto.graph.initializer[0].data_type = TensorProto.STRING
    elif kind == "short":
        proto.graph.initializer[0].raw_data = b"1234"
    elif kind == "attribute":
        proto.graph.node[0].attribute.append(helper.make_attribute("group", "four"))
    elif kind == "groups":
        proto.graph.node[0].attribute.append(helper.make_attribute("group", 0))
    elif kind == "batch":
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path.write_bytes(proto.SerializeToString() if content is None else content)
    return path


BROKEN = (
    "truncated", "text", "empty", "cycle", "nowhere", "domain", "opset", "loop", "outside", "absolute", "link", "fifo",
    "type", "short", "attribute", "groups", "batch",
)  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_and_hostile_files(kind, tmp_path):
    refused(broken(kind, tmp_path), {"x": X})


def test_external_data_beside_the_file_are_read(tmp_path):
    proto = model_of([node("Conv", "x w")], {"x": X}, {"w": weights(8, 4, 3, 3)})
    onnx.save(proto, tmp_path / "x.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = build_model(read_graph(tmp_path / "x.onnx"), {"x": torch.from_numpy(X)})
    assert found(torch.from_numpy(X)).shape == (1, 8, 4, 3)


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ({"z": X}, "takes the inputs x"),
        ({"x": X[:, :3]}, "of shape [4, 6, 5]"),
        ({"x": X.astype(np.int64)}, "as float32"),
    ],
)
def test_data_that_do_not_fit(example, told, tmp_path):
    path = tmp_path / "x.onnx"
    model_of([node("Conv", "x w")], {"x": X}, {"w": weights(8, 4, 3, 3)}, path=path)
    assert told in refused(path, example)


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a small ONNX file with names of its own, and inputs without labels."""
    folder = tmp_path_factory.mktemp("onnx")
    nodes = [
        node("Conv", "pixels.0 stem.weight stem.bias", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "b"),
        node("Conv", "b body.weight body.bias", "c"), node("Relu", "c", "d"), node("GlobalAveragePool", "d", "e"),
        node("Flatten", "e", "f"), node("Gemm", "f head.weight head.bias", "logits/out", transB=1),
    ]  # fmt: skip
    constants = {
        "stem.weight": weights(16, 1, 3, 3), "stem.bias": weights(16), "body.weight": weights(16, 16, 3, 3) / 4,
        "body.bias": weights(16), "head.weight": weights(5, 16), "head.bias": weights(5),
    }  # fmt: skip
    pixels = RANDOM.standard_normal((120, 1, 8, 8)).astype(np.float32)
    proto = model_of(nodes, {"pixels.0": pixels[:1]}, constants, ("logits/out",), opset=18)
    helper.set_model_props(proto, {"author": "somebody", "classes": "a,b,c,d,e"})
    onnx.save(proto, folder / "net.onnx")
    np.save(folder / "pixels.npy", pixels)
    files = ["--model", str(folder / "net.onnx"), "--calibration", str(folder / "pixels.npy")]
    brief = ["--evaluations", "2", "--finetune-epochs", "1", "--candidates", "1", "--batch-size", "16", "--quiet"]
    command = ["search", *files, "--flops", "0.5", *brief, "--out", str(folder / "run")]
    assert main(command) == 0
    return folder


@pytest.mark.slow
def test_a_run_keeps_names_metadata_and_opset(run):
    proto = onnx.load(run / "run" / "model.onnx")
    assert [v.name for v in proto.graph.input] == ["pixels.0"]
    assert [v.name for v in proto.graph.output] == ["logits/out"]
    props = {p.key: p.value for p in proto.metadata_props}
    assert (props["author"], props["classes"]) == ("somebody", "a,b,c,d,e")
    assert proto.opset_import[0].version == 18


@pytest.mark.slow
def test_a_run_reports_agreement(run):
    result = json.loads((run / "run" / "result.json").read_text())
    assert result["metric"] == "agreement with the original"
    assert result["original"]["test"] == 1.0
    assert all(line["met"] for line in result["proof"])
    assert main(["evaluate", str(run / "run"), "--quiet"]) == 0


@pytest.mark.slow
def test_a_runs_network_is_loaded_with_and_without_the_file(run):
    x = torch.from_numpy(np.load(run / "pixels.npy")[:3])
    alone, cut = amc.load(run / "run"), amc.load(run / "run", amc.load_onnx(run / "net.onnx"))
    with torch.no_grad():
        assert torch.equal(alone(x), cut(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--weights", "w.safetensors"], "has its own"),
        (["--calibration", "wrong.npy"], "of shape"),
        (["--model", "missing.onnx"], "No such file"),
    ],
)
def test_mistakes_with_onnx_files(run, options, told, capsys, monkeypatch):
    monkeypatch.chdir(run)
    np.save("wrong.npy", np.zeros((20, 3, 8, 8), np.float32))
    command = ["search", "--model", "net.onnx", "--calibration", "pixels.npy", "--flops", "0.5", "--out", "other"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("other").exists()
