"""The layers of an ONNX file: their widths, parameters and MACs, for comparing a network before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from amc.deploy.onnx_macs import inferred_graph, node_macs
from amc.errors import ExportError
from amc.task.nested import Nested

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class OnnxLayer:
    """A convolution or matrix product with a stored weight, for one inference."""

    label: str
    """The layer's name in torch if the file has kept it, else the node's."""
    name: str
    """Name of the node's first output."""
    operator: str
    inputs: int
    """Number of input channels."""
    outputs: int
    params: int
    macs: int | None
    """None if a shape is not known."""


def onnx_layers(path: Path, example: Nested) -> list[OnnxLayer]:
    """The layers of an ONNX file, in its order. Raises ExportError for an invalid file."""
    graph, shapes = inferred_graph(path, example)
    stored = {tensor.name for tensor in graph.initializer}
    found = [_layer(node, shapes, stored) for node in graph.node if node.op_type in OPERATORS]
    return [layer for layer in found if layer is not None]


def _layer(node: Any, shapes: Mapping[str, list[int]], stored: set[str]) -> OnnxLayer | None:
    """None if the node multiplies two activations."""
    held = [name for name in node.input if name in stored]
    weight = max(held, key=lambda name: len(shapes[name]), default=None)
    if weight is None or len(shapes[weight]) < 2:
        return None
    dims, named = shapes[weight], weight.endswith(".weight")
    label = weight.removesuffix(".weight") if named else node.name or node.output[0]
    try:
        macs = node_macs(node, shapes)
    except (KeyError, ExportError):
        macs = None
    return OnnxLayer(
        label, node.output[0], node.op_type, *_channels(node, dims), sum(prod(shapes[name]) for name in held), macs
    )


def _channels(node: Any, dims: list[int]) -> tuple[int, int]:
    """Numbers of input and output channels, from the dimensions of the weight."""
    flags = {a.name: a.i for a in node.attribute if a.name in ("group", "transB")}
    group = flags.get("group", 1)
    if node.op_type == "Conv":
        return dims[1] * group, dims[0]
    if node.op_type == "ConvTranspose":
        return dims[0], dims[1] * group
    inputs, outputs = dims[-2], dims[-1]
    return (outputs, inputs) if flags.get("transB") else (inputs, outputs)
