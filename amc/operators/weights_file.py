"""Weights of few bits in an ONNX file: integers and scales.

The initializer ``NAME`` becomes the integers ``NAME_q`` and the scales ``NAME_s``. A Cast and a Mul compute ``NAME``
from them. Runtimes do that once, when they load the file, since nothing of it depends on the inputs: the network takes
as long as in float. A DequantizeLinear would take fewer bytes (some 50 a layer), but ONNX Runtime keeps it for 8-bit
kernels, and computes it anew in every inference: the small network for digits took 2.7 times as long.

The number of bytes is known before anything is written. Where integers would take no less than numbers in float, as for
a layer of a few weights, the file keeps the float numbers, which are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import nn

from amc.errors import ExportError
from amc.graph.channels import CONVS, TRANSPOSED
from amc.operators.branches import keep_only, record_bytes
from amc.operators.quantisation import recovered
from amc.space.file_size import StoredTensor, WeightPlace, varint

OPSET = {4: 21, 8: 13}
"""The first opset whose Cast takes integers of this many bits."""
_TYPES = {4: TensorProto.INT4, 8: TensorProto.INT8}
_CHANGED = frozenset(["GroupNormalization"])
"""Operators that compute something else since opset 21."""


def find_weights(proto: Any, model: nn.Module) -> dict[str, WeightPlace]:
    """The weights of convolutions and linear layers of ``model`` in its ONNX file, by the layer's name.

    A layer is left out if its weights are not one float32 tensor that one operator reads.
    """
    if any(a.type in (a.GRAPH, a.GRAPHS) for node in proto.graph.node for a in node.attribute):
        return {}
    stored = {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1}
    readers: dict[str, int] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    layers = _layers(model)
    by_content: dict[tuple[bytes, tuple[int, ...]], str] | None = None
    found: dict[str, WeightPlace] = {}
    for node in proto.graph.node:
        axis = _output_axis(node)
        name = node.input[1] if axis is not None else ""
        if axis is None or name not in stored or readers[name] != 1:
            continue
        layer = name.removesuffix(".weight") if name.endswith(".weight") else ""
        if layer not in layers:
            by_content = _contents(layers) if by_content is None else by_content
            array = numpy_helper.to_array(stored[name])
            layer = by_content.get((np.ascontiguousarray(array).tobytes(), array.shape), "")
        if layer in layers and sorted(layers[layer].weight.shape) == sorted(stored[name].dims):
            found[layer] = WeightPlace(name, axis % len(stored[name].dims))
    return found


def _layers(model: nn.Module) -> dict[str, Any]:
    """Convolutions and linear layers with weights of their own."""
    found: dict[str, Any] = {}
    shared: dict[int, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)) and "weight" in module._parameters:
            found[name] = module
            shared[id(module.weight)] = shared.get(id(module.weight), 0) + 1
    return {name: module for name, module in found.items() if shared[id(module.weight)] == 1}


def _contents(layers: Mapping[str, Any]) -> dict[tuple[bytes, tuple[int, ...]], str]:
    """Linear layers by the content of their weights and of their transposes, which the exporter renames."""
    found: dict[tuple[bytes, tuple[int, ...]], str] = {}
    for name, module in layers.items():
        if isinstance(module, nn.Linear):
            array = module.weight.detach().cpu().numpy()
            for turned in (array, array.T):
                found[np.ascontiguousarray(turned).tobytes(), turned.shape] = name
    return found


def _output_axis(node: Any) -> int | None:
    """The dimension of the output channels in a node's second input, its weights; None for other nodes."""
    numbers = {a.name: a.i for a in node.attribute if a.type == a.INT}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if numbers.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if numbers.get("transB") else 1
    return -1 if node.op_type == "MatMul" else None


def least_bits(proto: Any, opset_is_fixed: bool) -> int:
    """The fewest bits of weights that a file can hold: below opset 21, 8, unless its opset can be raised."""
    opset = _opset(proto).version
    raised = not opset_is_fixed and all(node.op_type not in _CHANGED for node in proto.graph.node)
    return min(bits for bits, needed in OPSET.items() if opset >= needed or raised)


def quantised_records(tensor: StoredTensor, axis: int, bits: int) -> tuple[tuple[StoredTensor, StoredTensor], int]:
    """The integers and the scales in place of a float tensor, and the additional bytes of tags and nodes."""
    dims, axes = _scale_dims(tensor.dims, axis), (tensor.axes[axis], *(None,) * (len(tensor.dims) - axis - 1))
    integers = StoredTensor(tensor.dims, tensor.axes, 1, _fixed(_integer_tensor(tensor.name, tensor.dims, bits)),
                            packed=8 // bits)  # fmt: skip
    scales = StoredTensor(dims, axes, 4, _fixed(_scale_tensor(tensor.name, dims)))
    return (integers, scales), 1 + sum(map(record_bytes, _nodes(tensor.name)))


def write_weights(proto: Any, places: Mapping[str, WeightPlace], bits: Mapping[str, int]) -> None:
    """Store the weights of the layers in ``bits``, which are quantised already, as integers. Raises ExportError."""
    graph, stored = proto.graph, {t.name: t for t in proto.graph.initializer}
    for layer, own in bits.items():
        place = places[layer]
        tensor = stored[place.tensor]
        dims, array = tuple(tensor.dims), numpy_helper.to_array(tensor)
        try:
            codes, scales = recovered(torch.from_numpy(array.copy()), own, place.axis)
        except ValueError:
            raise ExportError(f"the weights of {layer} in the ONNX file are not of {own} bits.") from None
        integers = _integer_tensor(tensor.name, dims, own)
        factors = _scale_tensor(tensor.name, _scale_dims(dims, place.axis))
        integers.raw_data, factors.raw_data = _packed(codes.numpy(), own), scales.numpy().astype("<f4").tobytes()
        nodes = _nodes(tensor.name)
        if sum(map(record_bytes, (integers, factors, *nodes))) >= record_bytes(tensor):
            continue
        tensor.CopyFrom(integers)
        graph.initializer.append(factors)
        reader = next(k for k, other in enumerate(graph.node) if place.tensor in other.input)
        for new in reversed(nodes):
            graph.node.insert(reader, new)
        _opset(proto).version = max(OPSET[own], _opset(proto).version)


def as_float(proto: Any) -> Any:
    """A copy of an ONNX model with all integer weights in float again, for code that looks for weights."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    graph = own.graph
    stored = {t.name: t for t in graph.initializer}
    gone: list[str] = []
    for node in graph.node:
        name = node.output[0]
        if node.op_type == "Mul" and list(node.input) == [f"{name}_f", f"{name}_s"] and f"{name}_q" in stored:
            integers, scales = (numpy_helper.to_array(stored[f"{name}_{part}"]) for part in "qs")
            stored[f"{name}_q"].CopyFrom(numpy_helper.from_array(integers.astype(np.float32) * scales, name))
            gone += [name, f"{name}_f", f"{name}_s"]
    keep_only(graph.node, [node for node in graph.node if node.output[0] not in gone])
    keep_only(graph.initializer, [t for t in graph.initializer if not t.name.endswith("_s") or t.name not in gone])
    return own


def _opset(proto: Any) -> Any:
    return next(known for known in proto.opset_import if known.domain in ("", "ai.onnx"))


def _integer_tensor(name: str, dims: tuple[int, ...], bits: int) -> Any:
    return TensorProto(name=f"{name}_q", dims=dims, data_type=_TYPES[bits], raw_data=b"")


def _scale_tensor(name: str, dims: tuple[int, ...]) -> Any:
    return TensorProto(name=f"{name}_s", dims=dims, data_type=TensorProto.FLOAT, raw_data=b"")


def _nodes(name: str) -> tuple[Any, Any]:
    """The nodes that compute the tensor ``name``."""
    cast = onnx.helper.make_node("Cast", [f"{name}_q"], [f"{name}_f"], to=TensorProto.FLOAT)
    return cast, onnx.helper.make_node("Mul", [f"{name}_f", f"{name}_s"], [name])


def _scale_dims(dims: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The dimensions of the scales, which multiply integers of the dimensions ``dims``.

    >>> _scale_dims((64, 32, 3, 3), 0), _scale_dims((32, 10), 1)
    ((64, 1, 1, 1), (10,))
    """
    return (dims[axis], *(1,) * (len(dims) - axis - 1))


def _packed(codes: NDArray[Any], bits: int) -> bytes:
    """Integers in the order of the file; two of 4 bits in a byte, the first in its lower half."""
    flat = codes.astype(np.int8).ravel()
    if bits == 8:
        return flat.tobytes()
    pairs = np.append(flat, np.zeros(len(flat) % 2, np.int8)).view(np.uint8) & 15
    return (pairs[0::2] | pairs[1::2] << 4).astype(np.uint8).tobytes()


def _fixed(tensor: Any) -> int:
    """Bytes of an empty tensor's record without its dimensions and the length of its content."""
    return int(tensor.ByteSize()) - 1 - int(varint(tuple(tensor.dims)).sum())
