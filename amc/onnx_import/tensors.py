"""Operators without weights, on tensors.

A function takes the node and its inputs, and gives a tensor or a list of them. Small constants come as arrays of
numbers (`amc.onnx_import.node.Value`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.onnx_import.node import DTYPES, Node, Value, as_tensor, axes_of, scalar
from amc.onnx_import.windows import average_pool, convolution, max_pool

Operator = Callable[..., Any]


# Element by element


def operand(value: Value, like: Tensor) -> Any:
    """A value beside a tensor: a number where it is one and does not change the result's shape or type."""
    if isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= like.ndim:
        found = scalar(value)
        if like.is_floating_point() or not isinstance(found, float):
            return found
    return as_tensor(value, like)


def _both(x: Value, y: Value) -> tuple[Any, Any]:
    if isinstance(x, Tensor):
        return x, operand(y, x)
    if isinstance(y, Tensor):
        return operand(x, y), y
    return as_tensor(x), as_tensor(y)


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    def apply(node: Node, x: Value, y: Value) -> Tensor:
        return as_tensor(function(*_both(x, y)))

    return apply


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Value) -> Tensor:
        return function(as_tensor(x))

    return apply


def _many(function: Callable[[Any, Any], Any]) -> Operator:
    def apply(node: Node, *values: Value) -> Tensor:
        found = as_tensor(values[0])
        for other in values[1:]:
            found = function(found, as_tensor(other, found))
        return found

    return apply


def _mean(node: Node, *values: Value) -> Tensor:
    found: Tensor = _many(operator.add)(node, *values) / len(values)
    return found


def _divide(x: Any, y: Any) -> Any:
    floats = [v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float) for v in (x, y)]
    return x / y if any(floats) else torch.div(torch.as_tensor(x), y, rounding_mode="trunc")


def _power(node: Node, x: Value, y: Value) -> Tensor:
    base = as_tensor(x)
    found: Tensor = base ** operand(y, base)
    return found.to(base.dtype)


def _mod(node: Node, x: Value, y: Value) -> Tensor:
    a, b = _both(x, y)
    return torch.fmod(a, b) if node.whole("fmod") else torch.remainder(a, b)


def _where(node: Node, condition: Value, x: Value, y: Value) -> Tensor:
    chosen = as_tensor(condition).bool()
    like = next((v for v in (x, y) if isinstance(v, Tensor)), None)
    if like is None:
        return torch.where(chosen, as_tensor(x, chosen), as_tensor(y, chosen))
    a, b = (v if isinstance(v, Tensor) else operand(v, like) for v in (x, y))
    return torch.where(chosen, a, b)


def _clip(node: Node, x: Value, least: Value = None, most: Value = None) -> Tensor:
    given = as_tensor(x)
    low: Any
    high: Any
    low, high = (
        node.number(key, math.nan) if value is None else scalar(value) if not isinstance(value, Tensor) else value
        for key, value in (("min", least), ("max", most))
    )
    low, high = (None if isinstance(v, float) and math.isnan(v) else v for v in (low, high))
    if (low, high) == (0, 6):
        return F.relu6(given)
    return given if low is None and high is None else torch.clamp(given, low, high)


def _cast(node: Node, x: Value) -> Tensor:
    number = node.whole("to")
    if number not in DTYPES:
        raise node.refused(f"it casts to the type {number}, which is not supported")
    return as_tensor(x).to(DTYPES[number])


def _gelu(node: Node, x: Value) -> Tensor:
    return F.gelu(as_tensor(x), approximate=node.text("approximate", "none"))


def _hard_sigmoid(node: Node, x: Value) -> Tensor:
    given, alpha, beta = as_tensor(x), node.number("alpha", 0.2), node.number("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(given)
    return (alpha * given + beta).clamp(0, 1)


def _shrink(node: Node, x: Value) -> Tensor:
    given, border, bias = as_tensor(x), node.number("lambd", 0.5), node.number("bias", 0.0)
    inside = torch.where(given > border, given - bias, torch.zeros_like(given))
    return torch.where(given < -border, given + bias, inside)


def _selu(node: Node, x: Value) -> Tensor:
    given = as_tensor(x)
    alpha, gamma = node.number("alpha", 1.6732632), node.number("gamma", 1.0507009)
    return gamma * F.elu(given, alpha)


def _prelu(node: Node, x: Value, slope: Value) -> Tensor:
    given = as_tensor(x)
    return torch.where(given < 0, as_tensor(slope, given) * given, given)


def _identity(node: Node, x: Value, *ignored: Value) -> Tensor:
    return as_tensor(x)


def _is_inf(node: Node, x: Value) -> Tensor:
    given = as_tensor(x)
    positive, negative = node.whole("detect_positive", 1), node.whole("detect_negative", 1)
    return (given.isposinf() & bool(positive)) | (given.isneginf() & bool(negative))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def apply(node: Node, x: Value) -> Tensor:
        given = as_tensor(x)
        axis = node.whole("axis", -1 if node.opset >= 13 else 1)
        if node.opset >= 13 or axis % given.ndim == given.ndim - 1:
            return function(given, dim=axis)
        flat = given.flatten(axis % given.ndim)  # older versions: over all axes from this one on
        return function(flat, dim=-1).reshape(given.shape)

    return apply


# Over axes


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(node: Node, x: Value, axes: Value = None) -> Tensor:
        given, where = as_tensor(x), axes_of(node, axes)
        if not where:
            if node.whole("noop_with_empty_axes"):
                return given
            where = list(range(given.ndim))
        return function(given, where, bool(node.whole("keepdims", 1)))

    return apply


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Operator:
    def apply(node: Node, x: Value) -> Tensor:
        if node.whole("select_last_index"):
            raise node.refused("it selects the last of equal elements")
        return function(as_tensor(x), node.whole("axis"), bool(node.whole("keepdims", 1)))

    return apply


def _cumsum(node: Node, x: Value, axis: Value) -> Tensor:
    given, dim = as_tensor(x), int(scalar(axis))
    if node.whole("reverse"):
        given = given.flip(dim)
    found = given.cumsum(dim)
    if node.whole("exclusive"):
        found = found - given
    return found.flip(dim) if node.whole("reverse") else found


def _top_k(node: Node, x: Value, k: Value) -> list[Tensor]:
    count = int(scalar(k))
    return list(torch.topk(as_tensor(x), count, node.whole("axis", -1), bool(node.whole("largest", 1)), True))


def _einsum(node: Node, *values: Value) -> Tensor:
    equation = node.text("equation", "")
    return torch.einsum(equation, *map(as_tensor, values))


def _matmul(node: Node, x: Value, y: Value) -> Tensor:
    return as_tensor(x) @ as_tensor(y)


def _gemm(node: Node, a: Value, b: Value, c: Value = None) -> Tensor:
    first, second = as_tensor(a), as_tensor(b)
    first = first.T if node.whole("transA") else first
    second = second.T if node.whole("transB") else second
    found = node.number("alpha", 1.0) * (first @ second)
    return found if c is None else found + node.number("beta", 1.0) * as_tensor(c, found)


# Normalisations


def _global(function: Callable[..., Tensor]) -> Operator:
    def apply(node: Node, x: Value) -> Tensor:
        given = as_tensor(x)
        return function(given, dim=list(range(2, given.ndim)), keepdim=True)

    return apply


def _lrn(node: Node, x: Value) -> Tensor:
    size = node.whole("size", 1)
    return F.local_response_norm(as_tensor(x), size, node.number("alpha", 1e-4), node.number("beta", 0.75),
                                 node.number("bias", 1.0))  # fmt: skip


def _normalised(node: Node, x: Value) -> Tensor:
    return F.normalize(as_tensor(x), p=float(node.whole("p", 2)), dim=node.whole("axis", -1), eps=0.0)


def _instance_norm(node: Node, x: Value, scale: Value, bias: Value) -> Tensor:
    given = as_tensor(x)
    return F.instance_norm(given, weight=as_tensor(scale, given), bias=as_tensor(bias, given),
                           eps=node.number("epsilon", 1e-5))  # fmt: skip


def _layer_norm(node: Node, x: Value, scale: Value, bias: Value = None) -> Tensor:
    given = as_tensor(x)
    shape = list(given.shape[node.whole("axis", -1) % given.ndim :])
    found = F.layer_norm(given, shape, eps=node.number("epsilon", 1e-5)) * as_tensor(scale, given)
    return found if bias is None else found + as_tensor(bias, given)


def _mean_variance(node: Node, x: Value) -> Tensor:
    given, axes = as_tensor(x), node.wholes("axes") or [0, 2, 3]
    centred = given - given.mean(axes, True)
    return centred / (centred.square().mean(axes, True) + 1e-9).sqrt()


TENSOR_OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs), "Acos": _unary(torch.acos), "Acosh": _unary(torch.acosh), "Add": _binary(operator.add),
    "And": _binary(torch.logical_and), "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin),
    "Asin": _unary(torch.asin), "Asinh": _unary(torch.asinh), "Atan": _unary(torch.atan), "Atanh": _unary(torch.atanh),
    "AveragePool": average_pool, "Cast": _cast, "Ceil": _unary(torch.ceil), "Clip": _clip, "Conv": convolution,
    "Celu": lambda node, x: F.celu(as_tensor(x), node.number("alpha", 1.0)),
    "Cos": _unary(torch.cos), "Cosh": _unary(torch.cosh), "CumSum": _cumsum, "Div": _binary(_divide),
    "Dropout": _identity, "Einsum": _einsum, "Elu": lambda node, x: F.elu(as_tensor(x), node.number("alpha", 1.0)),
    "Equal": _binary(operator.eq), "Erf": _unary(torch.erf), "Exp": _unary(torch.exp), "Floor": _unary(torch.floor),
    "Gelu": _gelu, "Gemm": _gemm, "GlobalAveragePool": _global(torch.mean), "GlobalMaxPool": _global(torch.amax),
    "Greater": _binary(operator.gt), "GreaterOrEqual": _binary(operator.ge), "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish), "Identity": _identity, "InstanceNormalization": _instance_norm,
    "IsInf": _is_inf, "IsNaN": _unary(torch.isnan), "LRN": _lrn, "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(as_tensor(x), node.number("alpha", 0.01)),
    "Less": _binary(operator.lt), "LessOrEqual": _binary(operator.le), "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax), "LpNormalization": _normalised, "MatMul": _matmul,
    "Max": _many(torch.maximum), "MaxPool": max_pool, "Mean": _mean, "MeanVarianceNormalization": _mean_variance,
    "Min": _many(torch.minimum), "Mish": _unary(F.mish), "Mod": _mod, "Mul": _binary(operator.mul),
    "Neg": _unary(torch.neg), "Not": _unary(torch.logical_not), "Or": _binary(torch.logical_or), "PRelu": _prelu,
    "Pow": _power, "Reciprocal": _unary(torch.reciprocal), "Relu": _unary(F.relu), "Round": _unary(torch.round),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)), "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Selu": _selu, "Shrink": _shrink, "Sigmoid": _unary(torch.sigmoid), "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin), "Sinh": _unary(torch.sinh), "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus), "Softsign": _unary(F.softsign), "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(operator.sub), "Sum": _many(operator.add),
    "Swish": lambda node, x: as_tensor(x) * torch.sigmoid(node.number("alpha", 1.0) * as_tensor(x)),
    "Tan": _unary(torch.tan), "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": lambda node, x: F.threshold(as_tensor(x), node.number("alpha", 1.0), 0.0),
    "TopK": _top_k, "Where": _where, "Xor": _binary(torch.logical_xor),
}  # fmt: skip
"""By name: functions of a node and its inputs."""
