"""Operators that hold sizes, as modules: pruning changes the sizes that they hold (`amc.graph.attributes`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from amc.onnx_import.node import Dim, Node, Value, as_tensor, numbers


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


class Splitter(nn.Module):
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
                x = backwards(x, axis, start, end, step)
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


def backwards(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """A slice with a negative step."""
    size = x.shape[axis]
    places = range(*slice(start, None if end < -size else end, step).indices(size))
    if list(places) == list(range(size - 1, -1, -1)):
        return x.flip(axis)
    return x.index_select(axis, torch.tensor(list(places), device=x.device))


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
        return Splitter(node, _lengths(node, x, values)), [0]
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
