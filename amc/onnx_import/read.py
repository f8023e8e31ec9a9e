"""Read an ONNX file as if a stranger had made it.

Nothing of a file is run here. Refused in one line: what is no regular file or larger than 2 GiB, tensors in files
outside its folder, control flow, operators of other domains, 8-bit operators, opsets before 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper

from amc.errors import ModelError, first_line
from amc.onnx_import.module import Interface
from amc.onnx_import.node import DTYPES, NUMPY, Node
from amc.runtime.files import check_file

LARGEST = 2**31
"""Most bytes of a file, protobuf's limit, and of all of its tensors."""
FIRST_OPSET = 11
MOST_NODES = 100_000
_EIGHT_BITS = ("QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_CONTROL = ("If", "Loop", "Scan")


@dataclass(frozen=True, eq=False)
class Input:
    """An input of a graph: its type, and its shape with None for sizes that are open."""

    dtype: int
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A checked graph."""

    path: Path
    interface: Interface
    inputs: dict[str, Input]
    constants: dict[str, NDArray[Any]]
    """Initializers."""
    nodes: tuple[tuple[Node, tuple[str, ...], tuple[str, ...]], ...]
    """In order: node, names of inputs (empty where left out) and of outputs."""


def read_graph(path: Path) -> OnnxGraph:
    """Read and check a file. Raises ModelError in one line."""
    proto = _inlined(path, _loaded(path))
    graph = proto.graph
    opset = next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < FIRST_OPSET:
        raise ModelError(f"{path} has opset {opset}, but must have at least {FIRST_OPSET}: export it with a newer one.")
    _check_nodes(path, graph)
    constants = {tensor.name: _array(path, tensor) for tensor in graph.initializer}
    inputs = {v.name: _input(path, v) for v in graph.input if v.name not in constants}
    if not inputs:
        raise ModelError(f"{path} has no inputs.")
    batches = {entry.shape[0] for entry in inputs.values() if entry.shape}
    fixed = next(iter(batches)) if len(batches) == 1 else None
    interface = Interface(
        tuple(inputs), tuple(v.name for v in graph.output), {p.key: p.value for p in proto.metadata_props}, opset, fixed
    )
    nodes = tuple((_node(path, node, opset), tuple(node.input), tuple(node.output)) for node in graph.node)
    return OnnxGraph(path, interface, inputs, constants, nodes)


def _loaded(path: Path) -> Any:
    """The protobuf message, with tensors of other files in it. Raises ModelError."""
    try:
        check_file(path, LARGEST)
        proto = onnx.load(str(path), load_external_data=False)
        for tensor in [*proto.graph.initializer, *(a.t for node in proto.graph.node for a in node.attribute)]:
            _check_place(path, tensor)
        external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
        if external:
            onnx.load_external_data_for_model(proto, str(path.parent))
        if not proto.graph.node:
            raise ValueError("its graph is empty")
        for value in proto.graph.output:
            value.type.tensor_type.shape.SetInParent()  # an output of unknown rank is nothing to refuse
        if not external or proto.ByteSize() < LARGEST:
            onnx.checker.check_model(proto)
    except Exception as error:  # noqa: BLE001  (the errors of protobuf and of the checker share no base class)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        if "Error parsing message" in reason or type(error).__name__ == "DecodeError":
            reason = "it is not an ONNX file"
        raise ModelError(f"cannot read {path}: {reason.rstrip('.')[:300]}.") from None
    return proto


def _check_place(path: Path, tensor: Any) -> None:
    """Raise an error where a tensor's content is in a file that is not a regular one in the model's folder."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise ValueError(f"it stores tensors in {_printable(name)!r}, which is not a file in its folder")
    try:
        check_file(path.parent / name, LARGEST, own=True)
        inside = (path.parent / name).parent.resolve() == path.parent.resolve() / Path(name).parent
    except OSError as error:
        raise ValueError(f"it stores tensors in {_printable(name)!r}: {error.strerror}") from None
    if not inside:
        raise ValueError(f"it stores tensors in {_printable(name)!r}, to which a link leads")


def _inlined(path: Path, proto: Any) -> Any:
    """Without functions of the file's own."""
    if not proto.functions:
        return proto
    try:
        found = inliner.inline_local_functions(proto)
    except Exception as error:  # noqa: BLE001
        raise ModelError(f"cannot read {path}: its functions cannot be inlined: {first_line(error)}") from None
    return found


def _check_nodes(path: Path, graph: Any) -> None:
    if len(graph.node) > MOST_NODES:
        raise ModelError(f"{path} has {len(graph.node):,} operators, but at most {MOST_NODES:,} are read.")
    if graph.sparse_initializer:
        raise ModelError(f"{path} holds sparse tensors, which are not supported.")
    for node in graph.node:
        where = f"{path} has the operator {_printable(node.op_type)} ('{_printable(node.name)}')"
        if node.op_type.startswith(_EIGHT_BITS):
            raise ModelError(
                f"{where}: it is quantised. Prune the float network, and quantise what comes out (--int8)."
            )
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"{where} of the domain {_printable(node.domain)}: only ONNX's own operators are supported."
            )
        if node.op_type in _CONTROL or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise ModelError(f"{where}: networks that decide or loop are not supported.")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:80]


def _array(path: Path, tensor: Any) -> NDArray[Any]:
    try:
        if tensor.data_type not in NUMPY:
            raise ValueError(f"its type is {onnx.TensorProto.DataType.Name(tensor.data_type).lower()}")
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:  # noqa: BLE001
        raise ModelError(
            f"{path}: the tensor '{_printable(tensor.name)}' cannot be read: {first_line(error)}"
        ) from None


def _input(path: Path, value: Any) -> Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        raise ModelError(f"{path}: the input '{_printable(value.name)}' is no tensor of numbers.")
    return Input(kind.elem_type, tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
                                       for d in kind.shape.dim))  # fmt: skip


def _node(path: Path, node: Any, opset: int) -> Node:
    attributes = dict(_attributes(path, node))
    attributes["_outputs"] = sum(bool(name) for name in node.output)
    return Node(_printable(node.op_type), _printable(node.name), attributes, opset)


def _attributes(path: Path, node: Any) -> Iterator[tuple[str, Any]]:
    kinds = onnx.AttributeProto
    for a in node.attribute:
        if a.type == kinds.INT:
            yield a.name, int(a.i)
        elif a.type == kinds.FLOAT:
            yield a.name, float(a.f)
        elif a.type == kinds.STRING:
            yield a.name, a.s.decode("utf-8", "replace")
        elif a.type == kinds.INTS:
            yield a.name, [int(v) for v in a.ints]
        elif a.type == kinds.FLOATS:
            yield a.name, [float(v) for v in a.floats]
        elif a.type == kinds.TENSOR:
            yield a.name, np.array(_array(path, a.t))


def constant_of(node: Node) -> NDArray[Any]:
    """The value of a Constant node."""
    found = node.attributes
    for key, kind in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                      ("value_floats", np.float32)):  # fmt: skip
        if key in found:
            return np.array(found[key], kind)
    if not isinstance(found.get("value"), np.ndarray):
        raise node.refused("its value is no tensor of numbers")
    value: NDArray[Any] = found["value"]
    return value
