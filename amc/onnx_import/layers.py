"""Operators with constant weights, as torch's own layers: what can be pruned, re-solved and trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.onnx_import.node import Node, Value
from amc.onnx_import.windows import pads_of

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Made:
    """A layer that stands for a node."""

    module: nn.Module
    inputs: tuple[int, ...] = (0,)
    """Which of the node's inputs it takes."""
    pads: tuple[int, ...] = ()
    """Padding in ONNX's order before it, where the layer itself cannot pad so."""
    named: int = 1
    """The node's input, a constant, that it is named after."""


Maker = Callable[[Node, list[Value]], Made | None]


def make_layer(node: Node, inputs: list[Value]) -> Made | None:
    """The layer for a node, where it has constant weights (arrays) and reads a tensor; None where it is no layer."""
    make = LAYERS.get(node.op)
    made = None if make is None or len(inputs) < 2 else make(node, inputs)
    if made is not None:
        made.module.eval()  # the example is not to change statistics
    return made


def _parameter(array: Any) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(array)).contiguous())


def _floats(*values: Value) -> bool:
    return all(isinstance(v, np.ndarray) and v.dtype == np.float32 for v in values if v is not None)


def _get(inputs: list[Value], place: int) -> Any:
    return inputs[place] if len(inputs) > place else None


_CONVS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _conv(node: Node, inputs: list[Value]) -> Made | None:
    x, weight, bias = inputs[0], inputs[1], _get(inputs, 2)
    if not (isinstance(x, Tensor) and isinstance(weight, np.ndarray) and _floats(weight, bias)):
        return None
    count = weight.ndim - 2
    if count not in _CONVS or x.ndim != weight.ndim:
        raise node.refused(f"it has {count} spatial axes")
    groups = node.whole("group", 1)
    strides, dilations = (tuple(node.wholes(key) or [1] * count) for key in ("strides", "dilations"))
    if groups < 1 or weight.shape[0] % groups:
        raise node.refused(f"it has {groups} groups")
    pads = pads_of(node, x.shape[2:], weight.shape[2:])
    even = pads[:count] == pads[count:]
    layer = _CONVS[count](
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), strides,
        tuple(pads[:count]) if even else 0, dilations, groups, bias is not None,
        device="meta",
    )  # fmt: skip
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return Made(layer, pads=() if even else tuple(pads))


def _conv_transpose(node: Node, inputs: list[Value]) -> Made | None:
    x, weight, bias = inputs[0], inputs[1], _get(inputs, 2)
    if not (isinstance(x, Tensor) and isinstance(weight, np.ndarray) and _floats(weight, bias)):
        raise node.refused("its kernel is computed")
    count = weight.ndim - 2
    pads = node.wholes("pads") or [0] * 2 * count
    if count not in _TRANSPOSED or node.text("auto_pad", "NOTSET") != "NOTSET" or node.wholes("output_shape"):
        raise node.refused("its padding follows from its output's shape")
    extra = list(node.wholes("output_padding") or [0] * count)
    if pads[:count] != pads[count:]:
        raise node.refused(f"its padding {pads} is uneven")
    groups = node.whole("group", 1)
    strides, dilations = (tuple(node.wholes(key) or [1] * count) for key in ("strides", "dilations"))
    layer = _TRANSPOSED[count](
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), strides,
        tuple(pads[:count]), tuple(extra), groups, bias is not None, dilations,
        device="meta",
    )  # fmt: skip
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return Made(layer)


def linear(weight: Any, bias: Any = None) -> nn.Linear:
    """A linear layer of weights ``[out, in]``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _gemm(node: Node, inputs: list[Value]) -> Made | None:
    x, weight, bias = inputs[0], inputs[1], _get(inputs, 2)
    if not (isinstance(x, Tensor) and isinstance(weight, np.ndarray) and _floats(weight, bias)) or node.whole("transA"):
        return None
    rows = weight if node.whole("transB") else weight.T
    rows = rows * np.float32(node.number("alpha", 1.0))
    if bias is not None:
        if bias.size not in (1, rows.shape[0]) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
            return None
        bias = np.broadcast_to(bias.reshape(-1), rows.shape[:1]) * np.float32(node.number("beta", 1.0))
    return Made(linear(rows, bias))


def _matmul(node: Node, inputs: list[Value]) -> Made | None:
    x, weight = inputs[:2]
    if isinstance(x, Tensor) and isinstance(weight, np.ndarray) and weight.ndim == 2 and _floats(weight):
        return Made(linear(weight.T))
    return None


def _batch_norm(node: Node, inputs: list[Value]) -> Made | None:
    x = inputs[0]
    if not isinstance(x, Tensor) or len(inputs) != 5 or not _floats(*inputs[1:]):
        raise node.refused("its statistics are computed")
    if node.whole("training_mode"):
        raise node.refused("it is in training mode")
    kinds: Mapping[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if x.ndim not in kinds:
        raise node.refused(f"its input has {x.ndim} axes")
    scale, bias, mean, variance = (v for v in inputs[1:] if isinstance(v, np.ndarray))
    layer = kinds[x.ndim](len(scale), node.number("epsilon", 1e-5))
    layer.weight, layer.bias = _parameter(scale), _parameter(bias)
    layer.running_mean, layer.running_var = (torch.from_numpy(np.array(v)) for v in (mean, variance))
    return Made(layer)


def _layer_norm(node: Node, inputs: list[Value]) -> Made | None:
    x, scale, bias = inputs[0], inputs[1], _get(inputs, 2)
    if not (isinstance(x, Tensor) and isinstance(scale, np.ndarray) and _floats(scale, bias)):
        return None
    shape = list(x.shape[node.whole("axis", -1) % x.ndim :])
    if list(scale.shape) != shape or (bias is not None and list(bias.shape) != shape):
        return None
    layer = nn.LayerNorm(shape, node.number("epsilon", 1e-5), bias=bias is not None)
    layer.weight = _parameter(scale)
    if bias is not None:
        layer.bias = _parameter(bias)
    return Made(layer)


def _rms_norm(node: Node, inputs: list[Value]) -> Made | None:
    x, scale = inputs[:2]
    if not (isinstance(x, Tensor) and isinstance(scale, np.ndarray) and _floats(scale)):
        raise node.refused("its scale is computed")
    shape = list(x.shape[node.whole("axis", -1) % x.ndim :])
    if list(scale.shape) != shape:
        raise node.refused(f"its scale has the shape {list(scale.shape)}")
    layer = nn.RMSNorm(shape, node.number("epsilon", 1e-5))
    layer.weight = _parameter(scale)
    return Made(layer)


def _group_norm(node: Node, inputs: list[Value]) -> Made | None:
    x, scale, bias = inputs[0], inputs[1], _get(inputs, 2)
    if not (isinstance(x, Tensor) and isinstance(scale, np.ndarray) and bias is not None and _floats(scale, bias)):
        raise node.refused("its scale is computed")
    groups, channels = node.whole("num_groups", 1), x.shape[1]
    layer = nn.GroupNorm(groups, channels, node.number("epsilon", 1e-5))
    each = channels // len(scale)  # until opset 21 there is one scale for each group
    layer.weight, layer.bias = _parameter(np.repeat(scale, each)), _parameter(np.repeat(bias, each))
    return Made(layer)


def _prelu(node: Node, inputs: list[Value]) -> Made | None:
    x, slope = inputs[:2]
    if not (isinstance(x, Tensor) and isinstance(slope, np.ndarray) and _floats(slope)) or x.ndim < 2:
        return None
    shape = (1,) * (x.ndim - slope.ndim) + slope.shape
    if slope.size != 1 and (slope.size != x.shape[1] or shape[1] != slope.size):
        return None
    layer = nn.PReLU(slope.size)
    layer.weight = _parameter(slope.reshape(-1))
    return Made(layer)


def _gather(node: Node, inputs: list[Value]) -> Made | None:
    table, indices = inputs[:2]
    if not (isinstance(table, np.ndarray) and isinstance(indices, Tensor) and table.ndim == 2 and _floats(table)):
        return None
    if node.whole("axis") != 0:
        return None
    layer = nn.Embedding(table.shape[0], table.shape[1], _weight=torch.from_numpy(np.array(table)))
    return Made(layer, inputs=(1,), named=0)


LAYERS: Mapping[str, Maker] = {
    "BatchNormalization": _batch_norm, "Conv": _conv, "ConvTranspose": _conv_transpose, "Gather": _gather,
    "Gemm": _gemm, "GroupNormalization": _group_norm, "LayerNormalization": _layer_norm, "MatMul": _matmul,
    "PRelu": _prelu, "RMSNormalization": _rms_norm,
}  # fmt: skip
"""By name: a function of a node and its inputs on the example, in which constants are arrays."""
