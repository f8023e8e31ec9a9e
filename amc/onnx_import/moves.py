"""Operators that move elements, as functions. Those that hold sizes are modules (`amc.onnx_import.holders`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.onnx_import.holders import backwards
from amc.onnx_import.node import Node, Value, as_tensor, axes_of, numbers, scalar
from amc.onnx_import.resize import resize

Operator = Callable[..., Any]


def computed_slice(node: Node, x: Value, starts: Value = None, ends: Value = None, axes: Value = None,
                   steps: Value = None) -> Tensor:  # fmt: skip
    """A slice whose borders are computed."""
    given = as_tensor(x)
    first = numbers(starts)
    which = axes_of(node, axes) or list(range(len(first)))
    for axis, a, b, step in zip(which, first, numbers(ends), numbers(steps) or [1] * len(first), strict=True):
        if step < 0:
            given = backwards(given, axis % given.ndim, int(a), int(b), int(step))
        else:
            given = given[(slice(None),) * (axis % given.ndim) + (slice(a, b, int(step)),)]
    return given


def _reshaped(node: Node, x: Value, shape: Value) -> Tensor:
    """A reshape whose shape is computed altogether."""
    given = as_tensor(x)
    copies = not node.whole("allowzero")
    return given.reshape([given.shape[i] if isinstance(n, int) and n == 0 and copies else n
                          for i, n in enumerate(numbers(shape))])  # fmt: skip


def _flatten(node: Node, x: Value) -> Tensor:
    given, axis = as_tensor(x), node.whole("axis", 1)
    axis = axis + given.ndim if axis < 0 else axis
    if axis == 1 and given.ndim > 1:
        return given.flatten(1)
    return given.reshape(math.prod(given.shape[:axis]), -1)


def _transpose(node: Node, x: Value) -> Tensor:
    given = as_tensor(x)
    return given.permute(node.wholes("perm") or list(range(given.ndim))[::-1])


def _squeeze(node: Node, x: Value, axes: Value = None) -> Tensor:
    given, where = as_tensor(x), axes_of(node, axes)
    if where is None:
        where = [axis for axis, size in enumerate(given.shape) if axis and size == 1]
    for axis in sorted((a % given.ndim for a in where), reverse=True):
        given = given.squeeze(axis)
    return given


def _unsqueeze(node: Node, x: Value, axes: Value = None) -> Tensor:
    given, where = as_tensor(x), axes_of(node, axes) or []
    for axis in sorted(a % (given.ndim + len(where)) for a in where):
        given = given.unsqueeze(axis)
    return given


def _concat(node: Node, *values: Value) -> Tensor:
    like = next((v for v in values if isinstance(v, Tensor)), None)
    parts = [as_tensor(v, like) for v in values]
    axis = node.whole("axis")
    if axis % parts[0].ndim:  # a constant beside a batch, in a file for one batch size
        batch = next((p.shape[0] for v, p in zip(values, parts, strict=True) if isinstance(v, Tensor)
                      and not (isinstance(p.shape[0], int) and p.shape[0] == 1)), 1)  # fmt: skip
        parts = [p.expand(batch, *p.shape[1:]) if isinstance(p.shape[0], int) and p.shape[0] == 1 else p for p in parts]
    return torch.cat(parts, axis)


def _gather(node: Node, x: Value, indices: Value) -> Tensor:
    axis = node.whole("axis")
    if isinstance(x, Tensor) and not isinstance(indices, Tensor) and indices is not None:
        places = [int(v) for v in numbers(indices)]
        if indices.ndim == 0:
            return x.select(axis, places[0])
        if indices.ndim == 1 and len(places) == 1:
            start = places[0] % x.shape[axis] if places[0] < 0 else places[0]
            return x.narrow(axis, start, 1)
    given = as_tensor(x, indices if isinstance(indices, Tensor) else None)
    where = as_tensor(indices, given).long()
    where = torch.where(where < 0, where + given.shape[axis], where)
    axis %= given.ndim
    found = given.index_select(axis, where.reshape(-1))
    return found.reshape([*given.shape[:axis], *where.shape, *given.shape[axis + 1 :]])


def _gather_elements(node: Node, x: Value, indices: Value) -> Tensor:
    given, axis = as_tensor(x), node.whole("axis")
    where = as_tensor(indices, given).long()
    return given.gather(axis, torch.where(where < 0, where + given.shape[axis], where))


def _gather_nd(node: Node, x: Value, indices: Value) -> Tensor:
    given, where = as_tensor(x), as_tensor(indices).long()
    if node.whole("batch_dims"):
        raise node.refused("it has batch dimensions")
    return given[tuple(where.unbind(-1))]


def _scatter_nd(node: Node, x: Value, indices: Value, updates: Value) -> Tensor:
    if node.text("reduction", "none") != "none":
        raise node.refused("it reduces")
    given = as_tensor(x)
    where = as_tensor(indices, given).long()
    return given.index_put(tuple(where.unbind(-1)), as_tensor(updates, given))


def _pad(node: Node, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    given, mode = as_tensor(x), node.text("mode", "constant")
    amounts = [int(v) for v in (axes_of(node, pads, "pads") or [])]
    where = [int(v) % given.ndim for v in numbers(axes)] or list(range(given.ndim))
    count = len(where)
    both = {axis: (amounts[i], amounts[i + count]) for i, axis in enumerate(where)}
    first = min((axis for axis, pair in both.items() if any(pair)), default=given.ndim)
    ordered = [amount for axis in reversed(range(first, given.ndim)) for amount in both.get(axis, (0, 0))]
    node.check_size(*(s + sum(map(abs, both.get(a, (0, 0)))) for a, s in enumerate(given.shape)))
    if not ordered:
        return given
    if mode == "constant":
        filled = node.number("value", 0.0) if value is None else scalar(value)
        return F.pad(given, ordered, value=filled)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names:
        raise node.refused(f"its mode is {mode!r}")
    return F.pad(given, ordered, mode=names[mode])


def _tile(node: Node, x: Value, repeats: Value) -> Tensor:
    given, times = as_tensor(x), numbers(repeats)
    node.check_size(given.numel(), *times)
    return given.repeat(times)


def _depth_to_space(node: Node, x: Value) -> Tensor:
    given, block = as_tensor(x), node.whole("blocksize", 1)
    if node.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(given, block)
    n, c, h, w = given.shape
    parts = given.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(node: Node, x: Value) -> Tensor:
    given, block = as_tensor(x), node.whole("blocksize", 1)
    n, c, h, w = given.shape
    parts = given.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def _constant_of_shape(node: Node, shape: Value) -> Tensor:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    sizes = numbers(shape)
    node.check_size(*sizes)
    return torch.full(sizes, value.reshape(-1)[0].item(), dtype=torch.from_numpy(value).dtype)


def _range(node: Node, start: Value, limit: Value, delta: Value) -> Tensor:
    return torch.arange(scalar(start), scalar(limit), scalar(delta))


def _one_hot(node: Node, indices: Value, depth: Value, values: Value) -> Tensor:
    given, count = as_tensor(indices).long(), int(scalar(depth))
    node.check_size(given.numel(), count)
    off, on = numbers(values)
    found = (torch.remainder(given, count).unsqueeze(-1) == torch.arange(count, device=given.device)).float()
    spread: Tensor = found * (on - off) + off
    return spread.movedim(-1, node.whole("axis", -1))


def _triangle(node: Node, x: Value, k: Value = None) -> Tensor:
    given, diagonal = as_tensor(x), 0 if k is None else int(scalar(k))
    return given.triu(diagonal) if node.whole("upper", 1) else given.tril(diagonal)


def _cast_like(node: Node, x: Value, like: Value) -> Tensor:
    return as_tensor(x).to(as_tensor(like).dtype)


MOVE_OPERATORS: Mapping[str, Operator] = {
    "CastLike": _cast_like, "Concat": _concat, "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space, "Flatten": _flatten, "Gather": _gather, "GatherElements": _gather_elements,
    "GatherND": _gather_nd, "OneHot": _one_hot, "Pad": _pad, "Range": _range, "Reshape": _reshaped, "Resize": resize,
    "ScatterND": _scatter_nd, "Slice": computed_slice, "SpaceToDepth": _space_to_depth, "Squeeze": _squeeze,
    "Tile": _tile, "Transpose": _transpose, "Trilu": _triangle, "Unsqueeze": _unsqueeze, "Upsample": resize,
}  # fmt: skip
"""By name: functions of a node and its inputs."""
