"""MACs counted in an ONNX file, independently of the network in torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from amc.deploy.export import read_onnx
from amc.errors import ExportError
from amc.task import nested
from amc.task.nested import Nested

_PRODUCTS = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"))
_NO_FORMULA = frozenset(
    ("Attention", "DeformConv", "DFT", "STFT", "ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul")
)


def count_onnx_macs(path: Path, example: Nested) -> int:
    """MACs of one inference of an ONNX file: its convolutions, matrix products and recurrent layers.

    Raises ExportError where a node that multiplies has no formula, or a shape that is not known.
    """
    inferred, shapes = inferred_graph(path, example)
    try:
        return sum(node_macs(node, shapes) for node in inferred.node)
    except KeyError as error:
        raise ExportError(f"the shape of {error} in {path.name} is not known, so its MACs cannot be counted.") from None


def inferred_graph(path: Path, example: Nested) -> tuple[Any, dict[str, list[int]]]:
    """The graph of an ONNX file, and the shapes of its tensors for one inference, where they are known."""
    proto = read_onnx(path)
    feeds = nested.under(nested.feeds(example), [value.name for value in proto.graph.input])
    sizes = {name: array.shape for name, array in feeds.items()}
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes[value.name], strict=True):
            dim.ClearField("dim_param")
            dim.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*inferred.value_info, *inferred.input, *inferred.output]
        if v.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)
    }
    return inferred, shapes | {t.name: list(t.dims) for t in inferred.initializer}


def node_macs(node: Any, shapes: Mapping[str, list[int]]) -> int:
    """MACs of one node. Raises KeyError for an unknown shape, ExportError for an operator without a formula."""
    if node.op_type == "Conv":
        return int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(shapes[node.input[0]])) * int(np.prod(shapes[node.input[1]][1:]))
    if node.op_type in ("MatMul", "Gemm"):
        first = shapes[node.input[0]]
        inner = first[0] if node.op_type == "Gemm" and _attribute(node, "transA") else first[-1]
        return int(np.prod(shapes[node.output[0]])) * inner
    if node.op_type in ("LSTM", "GRU", "RNN"):  # [steps, N, inputs]; both matrices are applied at every step
        steps = int(np.prod(shapes[node.input[0]][:2]))
        return steps * sum(int(np.prod(shapes[name])) for name in node.input[1:3]) if steps else 0
    if node.op_type == "Einsum" and len(node.input) == 2:
        return einsum_macs(_attribute(node, "equation").decode(), [shapes[name] for name in node.input])
    inside = [a.g for a in node.attribute if a.HasField("g")]
    if node.op_type in _PRODUCTS | _NO_FORMULA or any(
        n.op_type in _PRODUCTS | _NO_FORMULA for graph in inside for n in graph.node
    ):
        raise ExportError(f"the MACs of {node.op_type} in the ONNX file cannot be counted.")
    return 0


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """MACs of an einsum of two operands: every combination of the labels' values is one multiplication.

    >>> einsum_macs("...ij, jk -> ...ik", [[5, 2, 3], [3, 4]])
    120
    """
    sizes: dict[str | int, int] = {}
    for term, shape in zip(equation.partition("->")[0].replace(" ", "").split(","), shapes, strict=True):
        before, dots, after = term.partition("...")
        rest = len(shape) - len(before) - len(after)
        labels = [*before, *(range(-rest, 0) if dots else ()), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _attribute(node: Any, name: str) -> Any:
    """Its value; None where the node has none of this name."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
