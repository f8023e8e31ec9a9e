"""Rules of layers with weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc.graph.elements import varying
from amc.graph.flow.flow import Flow
from amc.graph.flow.products import two_matrices
from amc.graph.flow.records import Vector, WeightedLayer
from amc.graph.flow.rules import rule
from amc.graph.macs import operator_macs


@rule("convolution", "_convolution")
def _convolution(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    x, weight = args[:2]
    transposed, groups = bool(args[6]), int(args[8])
    ids = flow.ids.channels_along(flow.planes.of(x), 1, x.shape[1], "a convolution runs over its channels")
    layer = flow.layers.of(weight, out.shape[1])
    if layer is None and ids is not None and not transposed and _is_one_kernel(weight, groups, x.shape[1]):
        flow.count_product(func, args, kwargs, out, ids)
        return ids.reshape(1, -1, *[1] * (out.ndim - 2)).expand(out.shape)
    if layer is None or (transposed and groups > 1 and weight.shape[:2] != (groups, 1)):
        if ids is not None:
            flow.ids.freeze(ids, _why_unread(flow, layer, weight, groups))
        if layer is not None:
            flow.ids.freeze(layer.output, f"{layer.name} is a transposed convolution of {groups} groups of channels")
            return layer.output.reshape(1, -1, *[1] * (out.ndim - 2)).expand(out.shape)
        return None
    layer.transposed = transposed and groups == 1
    flow.count_layer(layer, weight, operator_macs(func, args, kwargs, out) or 0)
    if groups == 1:
        if ids is not None:
            flow.layers.set_input(layer, ids)
    else:
        _grouped(flow, layer, ids, groups)
    flow.layers.set_output(layer, out)
    found: Tensor | None = layer.output.reshape(1, -1, *[1] * (out.ndim - 2)).expand(out.shape)
    bias = flow.planes.of(args[2]) if layer.bare else None
    if bias is not None:
        found = flow.ids.join(found, bias.reshape(1, -1, *[1] * (out.ndim - 2)))
    return found


def _is_one_kernel(weight: Tensor, groups: int, channels: int) -> bool:
    """Whether every channel is filtered by itself, all with the same kernel, as a blur does: it is expanded or repeated
    while the network runs.
    """
    alike = weight.stride(0) == 0 or bool((weight == weight[:1]).all())
    return groups == channels == len(weight) and weight.shape[1] == 1 and alike


def _why_unread(flow: Flow, layer: WeightedLayer | None, weight: Tensor, groups: int) -> str:
    """Why the channels that a convolution reads are frozen."""
    if layer is not None:
        return f"{layer.name}, which reads it, is a transposed convolution of {groups} groups of channels"
    own, origin = flow.own.find(weight), flow.origin(weight)
    where = f"in {flow.running.name} " if flow.running.name else ""
    source = f"from a part of {own[0]}" if own else "while the network runs" + (f", from {origin}" if origin else "")
    return f"the weights of a convolution {where}that reads it are made {source}"


@rule("embedding")
def _embedding(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    table = flow.layers.of_table(args[0])
    return None if table is None else table.output.expand(out.shape)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """Sums, means or maxima of the rows that are looked up."""
    table = flow.layers.of_table(args[0])
    return None if table is None else [
        table.output.expand(t.shape) if t.shape == out[0].shape else None for t in out
    ]  # fmt: skip


def _grouped(flow: Flow, layer: WeightedLayer, ids: Vector | None, groups: int) -> None:
    """Whole groups are removed where there are more groups than channels in one; else equal channels of all groups."""
    reason = f"{layer.name} has {groups} groups"
    outputs = layer.output.reshape(groups, -1)
    if ids is None:
        flow.ids.freeze(outputs, "it is a grouped convolution of the network's input")
        return
    inputs = ids.reshape(groups, -1)
    layer.by_group = groups >= max(inputs.shape[1], outputs.shape[1])
    if layer.by_group:
        flow.ids.tie(inputs[:, :1], inputs, reason)
        flow.ids.tie(inputs[:, :1], outputs, reason)
        return
    flow.ids.tie(inputs[:1], inputs, reason)
    flow.ids.tie(outputs[:1], outputs, reason)
    flow.layers.set_input(layer, inputs[0])


@rule("addmm", "mm")
def _matrix(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    bias, x, weight = args if name == "addmm" else (None, *args)
    layer = flow.layers.of(weight, weight.shape[1])
    if layer is None:
        return two_matrices(flow, func, args, kwargs, out, x, weight)
    own = flow.own.find(weight)
    if layer.bare and own is not None and own[1].shape == weight.shape and own[1].stride() == weight.stride():
        layer.transposed = True  # [in, out]
    plane = flow.planes.of_input(x)
    changing = [] if plane is None else varying(plane)
    if plane is not None and 0 in changing:  # it runs for every channel separately
        plane = flow.ids.only_along(plane, [0], f"{layer.name} runs over its channels")
        layer.refused = "it runs for every channel of another site"
        flow.count_product(func, args, kwargs, out, plane[:, 0])
        return plane[:, :1].expand(out.shape)
    flow.count_layer(layer, weight, operator_macs(func, args, kwargs, out) or 0)
    if plane is not None:
        flow.layers.set_input(layer, plane[0])
    found: Tensor | None = layer.output[None].expand(out.shape)
    if bias is not None and flow.planes.of(bias) is not None:
        found = flow.ids.join(found, flow.planes.of(bias).reshape(1, -1))  # type: ignore[union-attr]
    flow.layers.set_output(layer, out)
    return found
