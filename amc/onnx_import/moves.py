"""Operators that move elements. Those that hold sizes are modules: pruning changes the sizes that they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amc.onnx_import.node import Dim, Node, Value, as_tensor, numbers, scalar
from amc.onnx_import.tensors import axes_of

Operator = Callable[..., Any]


class Reshape(nn.Module):
    """A view of another shape. Sizes that are written in the file are in ``shape``, which pruning changes.

    >>> Reshape(Node("Reshape", "", {}, 13), (1, 6), (0, 6))(torch.zeros(2, 2, 3)).shape
    torch.Size([2, 6])
    """

    def __init__(self, node: Node, shape: tuple[int, ...], target: tuple[int | None, ...],
                 first_of: int | None = None) -> None:  # fmt: skip
        """``shape`` is the result's on the example; ``target`` is as in the file: None for sizes that are computed.

        ``first_of``: the first size of the input, in a file for one batch size; the result's is in proportion to it.
        """
        super().__init__()
        self.node, self.shape = node, shape
        self._target, self._first_of = target, first_of

    def forward(self, x: Tensor, sizes: Value = None) -> Tensor:
        computed = numbers(sizes) if sizes is not None and not isinstance(sizes, Tensor) else []
        copies = not self.node.whole("allowzero")
        wanted: list[Any] = []
        for place, size in enumerate(self._target):
            if size is None:
                wanted.append(computed[place])
            elif size == 0 and copies:
                wanted.append(x.shape[place])
            else:
                wanted.append(-1 if size == -1 else self.shape[place])
        if self._first_of and wanted and isinstance(self._target[0], int) and self._target[0] > 0:
            wanted[0] = self._first(x, wanted, self._target[0], self._first_of)
        return x.reshape(wanted)

    @staticmethod
    def _first(x: Tensor, wanted: list[Any], first: int, of: int) -> Any:
        """The first size for the batch of ``x``."""
        if -1 not in wanted[1:]:
            return -1
        return x.shape[0] * (first // of) if first % of == 0 else x.shape[0] // max(1, of // first)


class Expand(nn.Module):
    """Broadcast to a shape; along the first axis of a file for one batch size nothing is repeated."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Value, shape: Value) -> Tensor:
        given, wanted = as_tensor(x), numbers(shape)
        rank = max(given.ndim, len(wanted))
        have = [1] * (rank - given.ndim) + list(given.shape)
        want = [1] * (rank - len(wanted)) + wanted
        sizes = [h if isinstance(w, int) and w == 1 else w for h, w in zip(have, want, strict=True)]
        self.node.check_size(*sizes)
        return given.expand(sizes)


class Split(nn.Module):
    """Parts along an axis; equal ones stay equal when channels are removed."""

    def __init__(self, node: Node, lengths: list[int]) -> None:
        super().__init__()
        self.node, self.lengths = node, tuple(lengths)

    def forward(self, x: Tensor) -> list[Tensor]:
        axis = self.node.whole("axis")
        if len(set(self.lengths)) == 1:
            return list(torch.split(x, x.shape[axis] // len(self.lengths), axis))
        return list(torch.split(x, list(self.lengths), axis))


class Slice(nn.Module):
    """Parts along axes, with constant borders. One of n equal parts stays that when channels are removed."""

    def __init__(self, node: Node, shape: torch.Size, borders: list[tuple[int, int, int, int]]) -> None:
        """``borders``: axis, start, end and step; ``shape`` is the input's on the example."""
        super().__init__()
        self.node = node
        self._borders = [(axis % len(shape), *self._cut(shape[axis % len(shape)], start, end, step))
                         for axis, start, end, step in borders]  # fmt: skip

    @staticmethod
    def _cut(size: int, start: int, end: int, step: int) -> tuple[int, int, int, int]:
        """Start, end, step, and of how many equal parts it is one (0: it is none)."""
        if step < 0:
            return start, end, step, 0
        first, last, _ = slice(start, end).indices(size)
        length = max(0, last - first)
        equal = step == 1 and 0 < length < size and size % length == 0 and first % length == 0
        return first, last if last < size else 1 << 62, step, size // length if equal else 0

    def forward(self, x: Tensor) -> Tensor:
        for axis, start, end, step, parts in self._borders:
            size = x.shape[axis]
            if step < 0:
                x = _backwards(x, axis, start, end, step)
            elif parts:
                whole = self._whole(parts, start, end, size)
                length = size // parts
                x = x.narrow(axis, whole * length, length)
            elif start or end < 1 << 62 or step > 1:
                x = x[(slice(None),) * axis + (slice(start, end, step),)]
        return x

    @staticmethod
    def _whole(parts: int, start: int, end: int, size: int) -> int:
        """The number of the part."""
        if end >= 1 << 62:
            return parts - 1
        return start // (end - start)


def _backwards(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    size = x.shape[axis]
    places = range(*slice(start, None if end < -size else end, step).indices(size))
    if list(places) == list(range(size - 1, -1, -1)):
        return x.flip(axis)
    return x.index_select(axis, torch.tensor(list(places), device=x.device))


def computed_slice(node: Node, x: Value, starts: Value = None, ends: Value = None, axes: Value = None,
                   steps: Value = None) -> Tensor:  # fmt: skip
    """A slice whose borders are computed."""
    given = as_tensor(x)
    first = numbers(starts)
    which = axes_of(node, axes) or list(range(len(first)))
    for axis, a, b, step in zip(which, first, numbers(ends), numbers(steps) or [1] * len(first), strict=True):
        if step < 0:
            given = _backwards(given, axis % given.ndim, int(a), int(b), int(step))
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


def _resize(node: Node, x: Value, *rest: Value) -> Tensor:
    given = as_tensor(x)
    scales, sizes = (rest[0] if rest else None, None) if node.op == "Upsample" else (
        rest[1] if len(rest) > 1 else None, rest[2] if len(rest) > 2 else None)  # fmt: skip
    mode, how = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    if node.wholes("axes") is not None:
        raise node.refused("it names axes")
    spatial = given.ndim - 2
    if sizes is not None and sizes.shape != (0,):
        wanted = [int(v) for v in numbers(sizes)[2:]]
    else:
        factors = [float(v) for v in (node.attributes.get("scales") or numbers(scales))]
        if factors[:2] != [1.0, 1.0]:
            raise node.refused("it resizes the batch or the channels")
        wanted = [math.floor(size * factor) for size, factor in zip(given.shape[2:], factors[2:], strict=True)]
    node.check_size(*given.shape[:2], *wanted)
    if mode == "nearest":
        return _nearest(node, given, wanted, how)
    linear, cubic = mode in ("linear", "bilinear", "trilinear"), mode == "cubic"
    halves = ("half_pixel", "pytorch_half_pixel")
    if how not in (*halves, "align_corners") or node.whole("antialias"):
        if not (how == "asymmetric" and wanted == list(given.shape[2:])):
            raise node.refused(f"its coordinates are {how!r} in mode {mode!r}")
        return given
    if cubic and (spatial != 2 or node.number("cubic_coeff_a", -0.75) != -0.75):
        raise node.refused("it is cubic in another way than torch's")
    if not linear and not cubic:
        raise node.refused(f"its mode is {mode!r}")
    word = "bicubic" if cubic else {1: "linear", 2: "bilinear", 3: "trilinear"}[spatial]
    return F.interpolate(given, wanted, mode=word, align_corners=how == "align_corners")


def _nearest(node: Node, x: Tensor, wanted: list[int], how: str) -> Tensor:
    rounds = node.text("nearest_mode", "round_prefer_floor")
    if node.op == "Upsample":
        how, rounds = "asymmetric", "floor"
    sizes = list(zip(x.shape[2:], wanted, strict=True))
    places = [_places(node, old, new, how, rounds) for old, new in sizes]
    for mode, shift in (("nearest", 0.0), ("nearest-exact", 0.5)):  # torch has kernels for these
        own = [np.floor((np.arange(new) + shift) * (old / new)).clip(max=old - 1) for old, new in sizes]
        if all(np.array_equal(a, b) for a, b in zip(own, places, strict=True)):
            return F.interpolate(x, wanted, mode=mode)
    for axis, rows in enumerate(places, 2):
        x = x.index_select(axis, torch.from_numpy(rows).to(x.device))
    return x


def _places(node: Node, old: int, new: int, how: str, rounds: str) -> NDArray[np.int64]:
    """The element that each place of the result takes."""
    at, ratio = np.arange(new), old / new
    positions = {
        "asymmetric": at * ratio,
        "half_pixel": (at + 0.5) * ratio - 0.5,
        "pytorch_half_pixel": (at + 0.5) * ratio - 0.5 if new > 1 else 0.0 * at,
        "align_corners": at * ((old - 1) / max(1, new - 1)),
    }
    rounding: Mapping[str, Any] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }  # fmt: skip
    if how not in positions or rounds not in rounding:
        raise node.refused(f"its coordinates are {how!r}, rounded {rounds!r}")
    found: NDArray[np.int64] = rounding[rounds](positions[how]).clip(0, old - 1).astype(np.int64)
    return found


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
    "GatherND": _gather_nd, "OneHot": _one_hot, "Pad": _pad, "Range": _range, "Reshape": _reshaped, "Resize": _resize,
    "ScatterND": _scatter_nd, "Slice": computed_slice, "SpaceToDepth": _space_to_depth, "Squeeze": _squeeze,
    "Tile": _tile, "Transpose": _transpose, "Trilu": _triangle, "Unsqueeze": _unsqueeze, "Upsample": _resize,
}  # fmt: skip
"""By name: functions of a node and its inputs."""


Moving = tuple[nn.Module, list[int]]
"""A module, and which of a node's inputs it takes."""


def moving_module(node: Node, inputs: list[Value], fixed_batch: bool) -> Moving | None:
    """A module for a node that holds sizes, made on its example ``inputs``; None where it holds none.

    Sizes that are computed (`Dim`) are read anew in every pass.
    """
    x, rest = inputs[0], inputs[1:]
    if node.op == "Expand":
        return Expand(node), [0, 1]
    if not isinstance(x, Tensor) or any(isinstance(value, Tensor) for value in rest):
        return None
    if node.op == "Reshape":
        return _reshape_module(node, x, rest[0], fixed_batch)
    values = [numbers(value) for value in rest]
    if any(isinstance(v, Dim) for value in values for v in value):
        return None
    if node.op == "Split":
        return Split(node, _lengths(node, x, values)), [0]
    return (_slice_module(node, x, values), [0]) if node.op == "Slice" else None


def _reshape_module(node: Node, x: Tensor, wanted: Value, fixed_batch: bool) -> Moving:
    sizes = numbers(wanted)
    target = tuple(None if isinstance(size, Dim) else int(size) for size in sizes)
    copies = not node.whole("allowzero")
    whole = [x.shape[i] if size == 0 and copies else int(size) for i, size in enumerate(sizes)]
    computed = any(size is None for size in target)
    first = x.shape[0] if fixed_batch and not computed and x.ndim else None
    return Reshape(node, tuple(x.reshape(whole).shape), target, first), [0, 1] if computed else [0]


def _slice_module(node: Node, x: Tensor, values: list[list[Any]]) -> Slice:
    given = [[int(v) for v in (values[i] if i < len(values) else [])] for i in range(4)]
    if not values:
        given[:3] = [node.wholes(key) or [] for key in ("starts", "ends", "axes")]
    starts, ends, axes, steps = given
    axes = axes or list(range(len(starts)))
    return Slice(node, x.shape, list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True)))


def _lengths(node: Node, x: Tensor, values: list[list[Any]]) -> list[int]:
    given = [int(v) for v in values[0]] if values and values[0] else node.wholes("split")
    if given is not None:
        return given
    count = node.whole("num_outputs", int(node.attributes.get("_outputs", 1)))
    size = x.shape[node.whole("axis")]
    part = math.ceil(size / count)
    return [part] * (count - 1) + [size - part * (count - 1)]
