"""ONNX export: write the file, analyse its layout, and check that it computes the same as the network in torch.

The exporter's metadata about the source of each node (lines, paths) is removed: it is private and takes space.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc.deploy.program import FIXED_BATCH, arguments, why
from amc.deploy.translations import shared_translations
from amc.errors import ExportError, first_line
from amc.graph.attention import without_fast_path
from amc.graph.channels import Axis, BareParameter, Kept, Layer, ModuleKind
from amc.graph.sites import Graph
from amc.graph.surgery import axes_of, own_tensors, randomise_removed
from amc.onnx_import import OnnxModel
from amc.operators.branches import find_branches, owner, remove, removed, varint_bytes
from amc.operators.weights_file import find_weights, least_bits
from amc.runtime.files import check_file, replacing
from amc.runtime.silence import silenced
from amc.space.file_size import FileLayout, StoredTensor
from amc.task import nested
from amc.task.checks import copied
from amc.task.nested import Nested

_TRANSIENT = ("metadata_props", "doc_string")
STRUCTURE = "amc.outputs"
"""Key of the metadata that says what a network from an ONNX file gives, whose outputs have names of their own."""
OPSETS = (18, 23)
"""The first and the last opset that is written where a network comes from an ONNX file of one between them."""
_LARGEST = 2**31  # bytes: protobuf's limit


def export_onnx(model: nn.Module, example: Nested, path: Path) -> None:
    """Write ``model`` (evaluation mode) as ONNX with a dynamic batch. Raises ExportError."""
    size = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    if size >= _LARGEST:
        raise ExportError(f"the network's tensors take {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB at most.")
    own = copied(model).cpu().eval()
    args, kwargs, shapes = arguments(own, example)
    inputs, outputs, more = _interface(own, example)
    try:
        with silenced("torch", "onnxscript", "onnx_ir"), torch.no_grad(), without_fast_path(), shared_translations():
            program = torch.onnx.export(
                own,
                args,
                kwargs=kwargs,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                verbose=False,
                **more,
            )
    except Exception as error:  # the exporter raises many types
        cause = error.__cause__ or error
        raise ExportError(f"the network cannot be exported to ONNX: {why(cause)}") from error
    assert program is not None
    proto = program.model_proto
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_param:
            raise ExportError(f"the network cannot be exported to ONNX: {FIXED_BATCH}")
    _strip(proto)
    if isinstance(model, OnnxModel):
        structure = {STRUCTURE: "tensor"} if len(outputs) == 1 else {}
        onnx.helper.set_model_props(proto, {**model.interface.metadata, **structure})
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _interface(model: nn.Module, example: Nested) -> tuple[list[str], list[str], dict[str, Any]]:
    """Names of inputs and outputs, and options of the exporter: those of the file that a network comes from, if any."""
    if not isinstance(model, OnnxModel):
        outputs = nested.call(model, nested.to(example, "cpu"))
        return nested.names(example, "input"), nested.names(outputs, "output"), {}
    interface = model.interface
    names = list(example) if isinstance(example, dict) else list(interface.inputs)
    opset = {"opset_version": min(interface.opset, OPSETS[-1])} if interface.opset >= OPSETS[0] else {}
    return names, list(interface.outputs), opset


def export_pruned(model: nn.Module, example: Nested, path: Path, graph: Graph, kept: Kept) -> frozenset[str]:
    """Write a network pruned to ``kept`` as ONNX, without the branches of sites that keep nothing.

    Returns the names of the layers that are not in the file. Raises ExportError, and PolicyError if a site that keeps
    nothing is not in a removable branch.
    """
    if all(len(channels) for channels in kept):
        export_onnx(model, example, path)
        return frozenset()
    whole = copied(model)
    randomise_removed(whole, graph.layers, kept)  # exporters merge equal tensors, such as zeros
    with replacing(path) as temporary:
        export_onnx(whole, example, temporary)
        proto = onnx.load(str(temporary))
        branches = removed(proto, graph, kept)
        remove(proto, branches)
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    return frozenset[str]().union(*(branch.layers for branch in branches))


def _strip(proto: Any) -> None:
    graph = proto.graph
    del graph.value_info[:]
    messages = [proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *proto.functions]
    for message in messages:
        for field in _TRANSIENT:
            with contextlib.suppress(ValueError):
                message.ClearField(field)
    graph.name = "amc"


def check_onnx(path: Path, own: bool = False) -> None:
    """Raise ExportError unless ``path`` is a regular file of at most 2 GiB, which a library may open by name.

    ``own``: the file is in a run's folder, where links are not accepted.
    """
    try:
        check_file(path, _LARGEST, own)
    except OSError as error:
        raise ExportError(f"cannot load {path}: {error.strerror}.") from None


def read_onnx(path: Path) -> Any:
    """Read and check an ONNX file. Raises ExportError."""
    check_onnx(path)
    try:
        proto = onnx.load(str(path), load_external_data=False)
        if any(t.data_location == t.EXTERNAL for t in proto.graph.initializer):
            raise ValueError("it stores tensors in other files")
        onnx.checker.check_model(proto)
    except Exception as error:  # noqa: BLE001  (the errors of protobuf and of the checker share no base class)
        reason = first_line(error)
        raise ExportError(f"{path} is not a valid ONNX model: {reason}") from None
    return proto


def file_layout(path: Path, graph: Graph, model: nn.Module) -> FileLayout:
    """The layout of the original's ONNX file, from which `amc.space.resources` computes the exact size of policies."""
    proto = read_onnx(path)
    layers = {x.name: x for x in graph.layers if x.has_tensors and (x.output is not None or x.input is not None)}
    known, contents = _known(model, layers)
    groups = {n.input[1]: _attribute(n, "group", 1) for n in proto.graph.node if n.op_type == "Conv"}
    tensors = []
    for tensor in proto.graph.initializer:
        layer, dims = owner(tensor.name, layers), tuple(tensor.dims)
        content = _content(numpy_helper.to_array(tensor))
        axes = known.get((tensor.name, dims)) or contents.get((content, dims)) or _spread(contents, content, dims)
        per_group = dims[0] // groups.get(tensor.name, 1) if layer is not None and layer.by_group and dims else 0
        tensors.append(_stored(tensor, axes or _folded(dims, layer), per_group))
    least = least_bits(proto, opset_is_fixed=isinstance(model, OnnxModel))
    return FileLayout(path.stat().st_size, proto.graph.ByteSize(), tuple(tensors), find_branches(proto, graph),
                      find_weights(proto, model), least)  # fmt: skip


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _content(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


Axes = list[Axis | None]
_Known = dict[tuple[Any, tuple[int, ...]], Axes]


def _known(model: nn.Module, layers: Mapping[str, Layer]) -> tuple[_Known, _Known]:
    """Axes by name and shape, and by content and shape, of tensors and their transposes, which the exporter renames."""
    names: _Known = {}
    contents: _Known = {}
    for layer in layers.values():
        for key, tensor in own_tensors(model, layer).items():
            shape = tuple(tensor.shape)
            axes = axes_of(model, layer, key, shape)
            name = layer.tensor_name(key)
            names[name, shape] = axes
            if layer.kind is ModuleKind.LINEAR or isinstance(layer.kind, BareParameter):
                array = tensor.cpu().numpy()
                contents[_content(array), shape] = axes
                if array.ndim == 2:
                    names.setdefault((name, shape[::-1]), axes[::-1])
                    contents.setdefault((_content(array.T), shape[::-1]), axes[::-1])
    return names, contents


def _spread(contents: _Known, content: bytes, dims: tuple[int, ...]) -> Axes | None:
    """Axes of a vector to which the exporter has added axes of length 1, as in ``gamma.view(1, -1, 1, 1)``."""
    length = int(np.prod(dims))
    known = contents.get((content, (length,))) if dims.count(1) == len(dims) - 1 else None
    return None if known is None else [known[0] if n == length else None for n in dims]


def _folded(dims: tuple[int, ...], layer: Layer | None) -> Axes:
    """Axes of a tensor that the exporter derived from a layer's, such as a bias from a folded BatchNorm."""
    axes: Axes = [None] * len(dims)
    if layer is not None and layer.output is not None and len(layer.output) in dims and len(dims) == 1:
        axes[dims.index(len(layer.output))] = layer.output
    return axes


def _stored(tensor: Any, axes: Axes, per_group: int) -> StoredTensor:
    dims = tuple(tensor.dims)
    itemsize = max(1, len(tensor.raw_data) // max(1, int(np.prod(dims))))
    prefixes = sum(varint_bytes(d) for d in dims) + varint_bytes(len(tensor.raw_data))
    fixed = tensor.ByteSize() - len(tensor.raw_data) - prefixes
    return StoredTensor(dims, tuple(axes), itemsize, fixed, per_group, tensor.name)


@dataclass(frozen=True)
class Parity:
    """Largest difference between ONNX Runtime and torch, relative to the largest output."""

    samples: int
    largest_difference: float


PARITY_LIMIT = 1e-3
"""Largest accepted relative difference."""


def check_parity(model: nn.Module, inputs: Nested, runner: Any, limit: float = PARITY_LIMIT) -> Parity:
    """Compare ``runner.outputs(feeds) -> arrays`` with torch, on a batch and on one sample. Raises ExportError."""
    model, worst = model.cpu(), 0.0
    first = nested.mapped(lambda leaf: leaf[:1], inputs)
    with torch.inference_mode():
        expected = tensors_of(nested.call(model, inputs))
        alone = tensors_of(nested.call(model, first))
    for given, all_wanted in ((inputs, expected), (first, alone)):
        for found, wanted, whole in zip(runner.outputs(nested.feeds(given)), all_wanted, expected, strict=True):
            if found.shape != wanted.shape:
                shapes = f"{list(found.shape)}, torch {list(wanted.shape)}"
                raise ExportError(f"on ONNX Runtime the network's outputs have shape {shapes}.")
            worst = max(worst, _difference(found, wanted.numpy(), whole.numpy()))
    if not worst <= limit:
        raise ExportError(
            f"on ONNX Runtime the network's outputs differ from torch's by {worst:.2g} of the largest output (at most "
            f"{limit} is accepted)."
        )
    return Parity(nested.length(inputs), worst)


def check_program(program: nn.Module, model: nn.Module, inputs: Nested) -> None:
    """Compare a program with its network, on a batch and on one sample. Raises ExportError."""
    for given in (inputs, nested.mapped(lambda leaf: leaf[:1], inputs)):
        with torch.inference_mode():
            pairs = zip(*(tensors_of(nested.call(m, given)) for m in (program, model)), strict=True)
            worst = max((_difference(a.numpy(), b.numpy(), b.numpy()) for a, b in pairs), default=0.0)
        if not worst <= PARITY_LIMIT:
            raise ExportError(f"the program differs from the network by {worst:.2g} of the largest output.")


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in a network's outputs, in order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _difference(found: NDArray[Any], wanted: NDArray[Any], whole: NDArray[Any]) -> float:
    """Largest absolute difference, relative to the largest absolute value of ``whole``."""
    if not wanted.size:
        return 0.0
    scale = float(np.abs(whole.astype(np.float64)).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()) / scale
