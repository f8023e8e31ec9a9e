"""Write a pruned network's ONNX file from the original's: the same nodes with other weights.

torch's exporter takes seconds even for small networks, and the original has been exported already. In most networks
pruning changes the sizes of weights only, so the pruned network's file is the original's with other initializers. Where
it may not be (widths in a Reshape, weights that the exporter computed in a way that is not known here, equal weights
that it merged), `write_rewritten` refuses, and the network is exported. The caller compares the outputs of the file
with those of torch, as for every file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.errors import ExportError, first_line
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.operators.branches import remove, removed
from amc.runtime.files import replacing

_FOLDING = frozenset(["Conv", "Gemm"])
_CLOSE = 1e-5
"""Largest difference, relative to the largest weight, at which two ways to fold a BatchNorm are taken for the same."""

Array = NDArray[Any]


class Source(Protocol):
    """Computes one initializer of the file from a network's tensors."""

    @property
    def keys(self) -> frozenset[str]:
        """Names of the parameters and buffers that are read."""

    def values(self, model: nn.Module) -> Array:
        """The initializer for ``model``."""


@dataclass(frozen=True)
class Stored:
    """A parameter or buffer, as it is, transposed, or with axes of length 1 added."""

    key: str
    transposed: bool = False
    shape: tuple[int, ...] | None = None
    """With -1 for the length of the only other axis; None for the tensor's own shape."""

    @property
    def keys(self) -> frozenset[str]:
        """Names of the parameters and buffers that are read."""
        return frozenset([self.key])

    def values(self, model: nn.Module) -> Array:
        """The initializer for ``model``."""
        array = _array(_tensor(model, self.key))
        array = array.T if self.transposed else array
        return array if self.shape is None else array.reshape(self.shape)


@dataclass(frozen=True)
class Folded:
    """The weight or the bias of a layer into which the exporter has folded the BatchNorm that follows it."""

    layer: str
    norm: str
    bias: bool

    @property
    def keys(self) -> frozenset[str]:
        """Names of the parameters and buffers that are read."""
        names = ("weight", "bias", "running_mean", "running_var")
        own = "bias" if self.bias else "weight"
        return frozenset([f"{self.layer}.{own}", *(f"{self.norm}.{name}" for name in names)])

    def values(self, model: nn.Module) -> Array:
        """The initializer for ``model``, computed as the exporter does."""
        layer: Any = model.get_submodule(self.layer)
        norm: Any = model.get_submodule(self.norm)
        mean, variance = _array(norm.running_mean), _array(norm.running_var)
        gamma = np.ones_like(mean) if norm.weight is None else _array(norm.weight)
        beta = np.zeros_like(mean) if norm.bias is None else _array(norm.bias)
        scale: Array = gamma / np.sqrt(variance + norm.eps)
        if self.bias:
            own = np.zeros_like(mean) if layer.bias is None else _array(layer.bias)
            return (own - mean) * scale + beta
        weight = _array(layer.weight)
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def write_rewritten(
    original: Path, before: nn.Module, after: nn.Module, path: Path, graph: Graph, kept: Kept
) -> frozenset[str]:
    """Write ``after``, which is ``before`` pruned to ``kept`` and trained, with the nodes of ``original``.

    Returns the names of the layers that are not in the file, as `amc.deploy.export.export_pruned` does. Raises
    ExportError where the file cannot be made from the original's.
    """
    proto = onnx.load(str(original))
    sources = _sources(proto, before)
    after = after.cpu()
    for tensor in proto.graph.initializer:
        source = sources.get(tensor.name)
        if source is not None:
            _set(tensor, source.values(after))
    _set_groups(proto, sources, after)
    _set_flattened(proto)
    branches = removed(proto, graph, kept)
    remove(proto, branches)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    return frozenset[str]().union(*(branch.layers for branch in branches))


def _sources(proto: Any, model: nn.Module) -> dict[str, Source]:
    """Where the values of the initializers come from; constants are left out.

    Raises ExportError unless all of the network's tensors and all of the file's floating-point tensors are explained.
    """
    state = dict(_state(model))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    found: dict[str, Source] = {
        name: Stored(name) for name, array in arrays.items() if name in state and _same(array, _array(state[name]))
    }
    found |= _folded(proto, model, {name: array for name, array in arrays.items() if name not in found})
    used = frozenset[str]().union(*(source.keys for source in found.values()))
    by_content = _by_content({key: tensor for key, tensor in state.items() if key not in used})
    for name, array in arrays.items():
        known = by_content.get(_content(array)) if name not in found else None
        if known is not None:
            same = known.values(model).shape == array.shape
            found[name] = known if same else replace(known, shape=_pattern(array))
    used = used.union(*(source.keys for source in found.values()))
    missing = [key for key, tensor in state.items() if tensor.is_floating_point() and key not in used]
    unknown = [name for name, a in arrays.items() if name not in found and a.size > 1 and a.dtype.kind == "f"]
    if missing or unknown:
        raise ExportError(f"the file of the original does not show where {(missing or unknown)[0]} comes from.")
    return found


def _folded(proto: Any, model: nn.Module, arrays: Mapping[str, Array]) -> dict[str, Source]:
    """Sources of weights and biases with a folded BatchNorm, among the initializers ``arrays``."""
    modules = dict(model.named_modules())
    free = [name for name, module in modules.items() if isinstance(module, _BatchNorm)]
    found: dict[str, Source] = {}
    for node in proto.graph.node:
        weight, bias = [*node.input[1:3], "", ""][:2]
        layer = weight.rpartition(".")[0]
        if node.op_type not in _FOLDING or weight not in arrays or bias not in arrays or layer not in modules:
            continue
        for norm in _next_first(free, layer, list(modules)):
            pair = Folded(layer, norm, bias=False), Folded(layer, norm, bias=True)
            if _is_folded(model, pair, (arrays[weight], arrays[bias])):
                found[weight], found[bias] = pair
                free.remove(norm)
                break
    return found


def _next_first(norms: Sequence[str], layer: str, order: Sequence[str]) -> list[str]:
    """The norms after the layer first: networks list a layer's norm after it, and untrained norms are all alike."""
    own = order.index(layer)
    return sorted(norms, key=lambda name: (order.index(name) < own, order.index(name)))


def _is_folded(model: nn.Module, pair: Sequence[Folded], arrays: Sequence[Array]) -> bool:
    """Whether a weight and a bias in the file are a layer's with a BatchNorm folded in."""
    layer: Any = model.get_submodule(pair[0].layer)
    norm: Any = model.get_submodule(pair[0].norm)
    if norm.running_mean is None or len(norm.running_mean) != len(layer.weight):
        return False
    return all(_close(source.values(model), array) for source, array in zip(pair, arrays, strict=True))


def _close(ours: Array, theirs: Array) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool(np.abs(ours - theirs).max(initial=0) <= _CLOSE * np.abs(theirs).max(initial=0))


def _set_groups(proto: Any, sources: Mapping[str, Source], model: nn.Module) -> None:
    """Set the number of groups of every convolution to the pruned layer's."""
    for node in proto.graph.node:
        source = sources.get(node.input[1]) if node.op_type == "Conv" else None
        groups = [a for a in node.attribute if a.name == "group"]
        if source is None or not groups or groups[0].i == 1:
            continue
        name = source.layer if isinstance(source, Folded) else min(source.keys).rpartition(".")[0]
        groups[0].i = int(getattr(model.get_submodule(name), "groups", groups[0].i))


def _set_flattened(proto: Any) -> None:
    """Where features are flattened for a linear layer, set their number, which is a constant of the Reshape, to it."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    readers = {name: node for node in proto.graph.node for name in node.input[:1]}
    for node in proto.graph.node:
        linear = readers.get(node.output[0]) if node.op_type == "Reshape" else None
        if (
            linear is None
            or linear.op_type not in ("Gemm", "MatMul")
            or not {node.input[1], linear.input[1]} <= tensors.keys()
        ):
            continue
        shape, weight = numpy_helper.to_array(tensors[node.input[1]]), tensors[linear.input[1]]
        if shape.shape == (2,) and shape[0] == -1 and len(weight.dims) == 2:
            transposed = any(a.name == "transB" and a.i for a in linear.attribute)
            _set(tensors[node.input[1]], np.array([-1, weight.dims[1 if transposed else 0]], shape.dtype))


def _set(tensor: Any, values: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once."""
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            yield name, buffer


def _by_content(state: Mapping[str, Tensor]) -> dict[Any, Stored]:
    """Tensors of more than one element by content, also transposed; without those that are equal to another one."""
    found: dict[Any, Stored] = {}
    twice = set()
    for key, tensor in state.items():
        array = _array(tensor)
        ways = {_content(array): Stored(key)}
        if array.ndim == 2:
            ways.setdefault(_content(array.T), Stored(key, transposed=True))
        twice |= ways.keys() & found.keys()
        found |= ways
    return {content: source for content, source in found.items() if content not in twice and content is not None}


def _content(array: Array) -> Any:
    """What identifies an array of more than one element, without axes of length 1 where there is one other axis."""
    if array.size < 2:
        return None
    shape = (array.size,) if array.size in array.shape else array.shape
    return shape, array.dtype.str, np.ascontiguousarray(array).tobytes()


def _pattern(vector: Array) -> tuple[int, ...]:
    """The shape of an array with one axis that is longer than 1, for any length of that axis."""
    return tuple(1 if length == 1 else -1 for length in vector.shape)


def _same(array: Array, other: Array) -> bool:
    return array.dtype == other.dtype and array.shape == other.shape and array.tobytes() == other.tobytes()


def _tensor(model: nn.Module, key: str) -> Tensor:
    holder, _, name = key.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(holder), name)
    return tensor


def _array(tensor: Tensor) -> Array:
    """The tensor as an array. Raises ExportError for a type that numpy does not have, such as bfloat16."""
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except (TypeError, RuntimeError) as error:
        raise ExportError(f"a tensor of the network is no array: {first_line(error)}") from error
