"""Operators over windows of positions: pooling, and convolutions whose kernels are computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amc.onnx_import.node import Node, Value, as_tensor


def pads_of(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Padding ``[begin…, end…]`` of a convolution or pooling of inputs of this size."""
    count = len(spatial)
    how = node.text("auto_pad", "NOTSET")
    if how == "NOTSET":
        found = node.wholes("pads") or [0] * 2 * count
        if min(found) < 0 or len(found) != 2 * count:
            raise node.refused(f"its padding is {found}")
        return found
    if how == "VALID":
        return [0] * 2 * count
    strides, dilations = node.wholes("strides") or [1] * count, node.wholes("dilations") or [1] * count
    begin, end = [], []
    for size, k, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small = total // 2
        begin.append(total - small if how == "SAME_LOWER" else small)
        end.append(small if how == "SAME_LOWER" else total - small)
    return begin + end


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Padded along the last axes; ``pads`` in ONNX's order."""
    count = len(pads) // 2
    ordered = [p for axis in reversed(range(count)) for p in (pads[axis], pads[axis + count])]
    return F.pad(x, ordered, value=value) if any(pads) else x


_MAX: Mapping[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: Mapping[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(node: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int]]:
    kernel = node.wholes("kernel_shape") or []
    count = x.ndim - 2
    if len(kernel) != count or not 1 <= count <= 3:
        raise node.refused(f"its window is {kernel}, and its input has {x.ndim} axes")
    strides, dilations = node.wholes("strides") or [1] * count, node.wholes("dilations") or [1] * count
    return kernel, strides, dilations, pads_of(node, x.shape[2:], kernel)


def max_pool(node: Node, x: Value) -> Tensor:
    """MaxPool."""
    given = as_tensor(x)
    kernel, strides, dilations, pads = _window(node, given)
    count = len(kernel)
    even = pads[:count] == pads[count:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    if not even:
        given, pads = padded(given, pads, -math.inf), [0] * 2 * count
    ceil = bool(node.whole("ceil_mode"))
    found: Tensor = _MAX[count](given, kernel, strides, pads[:count], dilations, ceil)
    return found


def average_pool(node: Node, x: Value) -> Tensor:
    """AveragePool."""
    given = as_tensor(x)
    kernel, strides, dilations, pads = _window(node, given)
    count, counted = len(kernel), bool(node.whole("count_include_pad"))
    if any(d != 1 for d in dilations):
        raise node.refused("its window has gaps (dilations)")
    even = pads[:count] == pads[count:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    ceil = bool(node.whole("ceil_mode"))
    if even:
        found: Tensor = _AVERAGE[count](given, kernel, strides, pads[:count], ceil, counted)
        return found
    if ceil:
        raise node.refused("it has uneven padding and rounds sizes up")
    sums = _AVERAGE[count](padded(given, pads), kernel, strides)
    if counted:
        return sums  # type: ignore[no-any-return]
    ones = padded(torch.ones_like(given[:1, :1]), pads)
    return sums / _AVERAGE[count](ones, kernel, strides)  # type: ignore[no-any-return]


def convolution(node: Node, x: Value, weight: Value, bias: Value = None) -> Tensor:
    """A convolution whose kernel is computed."""
    given, kernel = as_tensor(x), as_tensor(weight)
    count = given.ndim - 2
    pads = pads_of(node, given.shape[2:], kernel.shape[2:])
    function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[count]
    found: Tensor = function(
        padded(given, pads), kernel, None if bias is None else as_tensor(bias, given),
        node.wholes("strides") or 1, 0, node.wholes("dilations") or 1, node.whole("group", 1),
    )  # fmt: skip
    return found
