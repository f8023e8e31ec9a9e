"""Operators on sizes and other small values, which are numpy arrays of numbers.

Exporters write shapes as graphs of their own: Shape, Gather, Concat, Reshape. Computed with tensors, they could not be
traced with a symbolic batch. Here their elements are Python's numbers, or torch's symbolic sizes (arrays of objects).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amc.onnx_import.node import NUMPY, Dim, Node, axes_of, numbers, scalar

Array = NDArray[Any]
Operator = Callable[..., Any]


def boxed(values: list[Any]) -> Array:
    """Sizes as an array that keeps what they are."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _gather(node: Node, x: Array, indices: Array) -> Array:
    places = np.array([int(v) for v in numbers(indices)], np.int64).reshape(indices.shape)
    return np.asarray(np.take(x, places, node.whole("axis")), x.dtype)


def _concat(node: Node, *parts: Array) -> Array:
    return np.concatenate(_alike(parts), node.whole("axis"))


def _alike(parts: tuple[Array, ...]) -> list[Array]:
    """Arrays of one type: of objects where one of them is."""
    return [p.astype(object) for p in parts] if any(p.dtype == object for p in parts) else list(parts)


def _slice(node: Node, x: Array, starts: Array | None = None, ends: Array | None = None, axes: Array | None = None,
           steps: Array | None = None) -> Array:  # fmt: skip
    first, last = axes_of(node, starts, "starts") or [], axes_of(node, ends, "ends") or []
    which = axes_of(node, axes) or list(range(len(first)))
    by = [int(v) for v in numbers(steps)] or [1] * len(first)
    index = [slice(None)] * x.ndim
    for axis, a, b, step in zip(which, first, last, by, strict=True):
        index[axis] = slice(a, None if step < 0 and b < -x.shape[axis] else b, step)
    return x[tuple(index)]


def _unsqueeze(node: Node, x: Array, axes: Array | None = None) -> Array:
    where = axes_of(node, axes) or []
    rank = x.ndim + len(where)
    shape = list(x.shape)
    for axis in sorted(a % rank for a in where):
        shape.insert(axis, 1)
    return x.reshape(shape)


def _squeeze(node: Node, x: Array, axes: Array | None = None) -> Array:
    where = axes_of(node, axes)
    return np.squeeze(x, None if where is None else tuple(where))


def _cast(node: Node, x: Array) -> Array:
    wanted = NUMPY[node.whole("to")]
    if x.dtype == object and issubclass(wanted, np.integer):
        return _each(lambda v: v if isinstance(v, int | torch.SymInt) else int(v), x)
    if x.dtype == object and wanted is not np.bool_:
        return x  # symbolic sizes are multiplied by floats as they are
    return x.astype(wanted)


def _each(function: Callable[[Any], Any], x: Array) -> Array:
    return boxed([function(v) for v in x.reshape(-1)]).reshape(x.shape)


def _divide(node: Node, x: Array, y: Array) -> Array:
    whole = all(np.issubdtype(v.dtype, np.integer) or
                (v.dtype == object and all(isinstance(e, int | torch.SymInt) for e in v.reshape(-1)))
                for v in (x, y))  # fmt: skip
    return np.asarray(x // y if whole else x / y)


def _where(node: Node, condition: Array, x: Array, y: Array) -> Array:
    return np.asarray(np.where(condition.astype(bool), *_alike((x, y))))


def _constant_of_shape(node: Node, shape: Array) -> Array:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    sizes = [int(v) for v in numbers(shape)]
    node.check_size(*sizes)
    return np.full(sizes, value.reshape(-1)[0], value.dtype)


def _range(node: Node, start: Array, limit: Array, delta: Array) -> Array:
    a, b, step = (scalar(v) for v in (start, limit, delta))
    node.check_size(int(abs((b - a) / step)) + 1)
    return np.arange(a, b, step, dtype=None if start.dtype == object else start.dtype)


def _reshape(node: Node, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(numbers(shape))])


def _expand(node: Node, x: Array, shape: Array) -> Array:
    wanted = np.broadcast_shapes(x.shape, tuple(int(v) for v in numbers(shape)))
    node.check_size(*wanted)
    return np.broadcast_to(x, wanted)


def _tile(node: Node, x: Array, repeats: Array) -> Array:
    times = [int(v) for v in numbers(repeats)]
    node.check_size(x.size, *times)
    return np.tile(x, times)


def _reduced(function: Any) -> Operator:
    def reduce(node: Node, x: Array, axes: Array | None = None) -> Array:
        where = axes_of(node, axes)
        if where == [] or (where is None and node.whole("noop_with_empty_axes")):
            where = None if not node.whole("noop_with_empty_axes") else ()  # type: ignore[assignment]
        return np.asarray(function(x, axis=None if where is None else tuple(where),
                                   keepdims=bool(node.whole("keepdims", 1))))  # fmt: skip

    return reduce


def _split(node: Node, x: Array, sizes: Array | None = None) -> list[Array]:
    lengths = axes_of(node, sizes, "split")
    axis = node.whole("axis")
    if lengths is None:
        return np.array_split(x, node.whole("num_outputs", 2), axis)
    return np.split(x, np.cumsum(lengths)[:-1], axis)


def _of(function: Callable[..., Any]) -> Operator:
    def apply(node: Node, *values: Array) -> Array:
        return np.asarray(function(*_alike(values)))

    return apply


def _rounded(function: Any) -> Operator:
    def apply(node: Node, x: Array) -> Array:
        if x.dtype != object:
            return np.asarray(function(x))
        return _each(lambda v: v if isinstance(v, int | torch.SymInt) else function(v), x)

    return apply


def _extreme(function: Any) -> Operator:
    def apply(node: Node, *values: Array) -> Array:
        found = values[0]
        for other in values[1:]:
            found = np.asarray(function(*_alike((found, other))))
        return found

    return apply


SIZE_OPERATORS: Mapping[str, Operator] = {
    "Abs": _of(np.abs), "Add": _of(operator.add), "And": _of(np.logical_and), "Cast": _cast, "Ceil": _rounded(np.ceil),
    "Concat": _concat, "ConstantOfShape": _constant_of_shape, "Div": _divide, "Equal": _of(operator.eq),
    "Expand": _expand, "Floor": _rounded(np.floor), "Gather": _gather, "Greater": _of(operator.gt),
    "GreaterOrEqual": _of(operator.ge), "Identity": _of(lambda x: x), "Less": _of(operator.lt),
    "LessOrEqual": _of(operator.le), "Max": _extreme(np.maximum), "Min": _extreme(np.minimum), "Mod": _of(operator.mod),
    "Mul": _of(operator.mul), "Neg": _of(operator.neg), "Not": _of(np.logical_not), "Or": _of(np.logical_or),
    "Range": _range, "ReduceMax": _reduced(np.max), "ReduceMin": _reduced(np.min), "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum), "Reshape": _reshape, "Round": _rounded(np.round), "Slice": _slice,
    "Split": _split, "Squeeze": _squeeze, "Sub": _of(operator.sub), "Tile": _tile, "Unsqueeze": _unsqueeze,
    "Where": _where,
}  # fmt: skip
"""By name: functions of a node and its inputs."""


def shape_of(node: Node, x: Any, mark: bool) -> Array:
    """Shape: sizes that are read from a tensor; ``mark``: as `Dim`."""
    sizes = list(x.shape)
    start, end = node.whole("start"), node.attributes.get("end")
    return boxed([Dim(s) if mark and isinstance(s, int) else s for s in sizes[start:end]])
