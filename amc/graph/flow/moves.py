"""Operators that move elements: their ids move in the same way."""

# mypy: disable-error-code=no-untyped-call
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.graph.elements import FIXED, core, tidy, varying
from amc.graph.flow.flow import Flow
from amc.graph.flow.records import Parts, View
from amc.graph.flow.rules import rule


@rule("clone", "_to_copy", "detach", "alias", "lift_fresh", "contiguous", "zeros_like", "ones_like", "empty_like",
       "full_like", "rand_like", "randn_like", "bernoulli", "dropout", "native_dropout", "as_strided_")  # fmt: skip
def _same(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    shapes = [t.shape for t in tree_leaves(out) if isinstance(t, Tensor)]
    return None if plane is None or shapes[0] != plane.shape else [plane] * len(shapes)


@rule("new_zeros", "new_ones", "new_empty", "new_full", "zero_", "fill_", "uniform_", "normal_",
       "arange", "_local_scalar_dense", "is_same_size")  # fmt: skip
def _nothing(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    return None


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def _view(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    new = tidy(plane.reshape(out.shape))
    if max(len(varying(new)), len(varying(plane))) > 1:
        block = new if len(varying(new)) >= len(varying(plane)) else plane
        flow.parts.append(Parts(flow.running.name, core(block).squeeze()))
    if varying(new):
        flow.views.append(View(flow.running.name, core(new), tuple(out.shape)))
    return new


@rule("expand", "permute", "transpose", "t", "numpy_T", "slice", "unsqueeze", "squeeze", "flip", "roll", "repeat",
       "narrow", "index_select", "pixel_unshuffle", "unfold", "diagonal", "movedim")  # fmt: skip
def _move(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    new = tidy(func(plane, *args[1:], **kwargs))
    if name == "slice" and out.shape != args[0].shape:
        _sliced(flow, plane, args[1] if len(args) > 1 else 0, args[2] if len(args) > 2 else 0, out)
    return new


def _sliced(flow: Flow, plane: Tensor, dim: int, start: int | None, out: Tensor) -> None:
    dim %= plane.ndim
    if dim in varying(plane):
        length, whole = out.shape[dim], plane.shape[dim]
        if whole % length == 0 and (start or 0) % length == 0:
            flow.cut_into_equal_parts(plane, dim, whole // length)
        else:
            _unequal(flow, plane, dim, "it is cut into pieces of fixed length")


def _unequal(flow: Flow, plane: Tensor, dim: int, reason: str) -> None:
    """Unequal parts: the channels of a head are tied, all others are frozen."""
    others = [d for d in range(plane.ndim) if d != dim]
    if set(varying(plane)) & set(others):
        flow.ids.only_along(plane, others, reason)
    else:
        flow.ids.freeze(core(plane), reason)


@rule("select", "unbind")
def _select(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    dim = (args[1] if len(args) > 1 else 0) % plane.ndim
    others = [d for d in range(plane.ndim) if d != dim]
    found = func(flow.ids.only_along(plane, others, "single channels are selected from it"), *args[1:])
    return [tidy(p) for p in found] if name == "unbind" else tidy(found)


@rule("pixel_shuffle")
def _pixel_shuffle(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    """``[…, C·r², H, W]`` → ``[…, C, H·r, W·r]``: r² channels become one."""
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    channel = plane.ndim - 3
    plane = flow.ids.only_along(plane, [channel], "pixel_shuffle runs over its channels")
    blocks = core(plane).movedim(channel, -1).reshape(-1)
    blocks = blocks.expand(args[0].shape[channel]).reshape(out.shape[channel], -1)
    flow.ids.tie(blocks[:, :1], blocks, "pixel_shuffle makes one channel of several")
    return blocks[:, 0, None, None].expand(out.shape)


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    flow.cut_into_equal_parts(plane, 1, args[1])
    return tidy(plane.unflatten(1, (args[1], -1)).transpose(1, 2).flatten(1, 2))


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "chunk")
def _split(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % plane.ndim
    lengths = [t.shape[dim] for t in out]
    if dim in varying(plane):
        if len(set(lengths)) == 1:
            flow.cut_into_equal_parts(plane, dim, len(lengths))
        else:
            _unequal(flow, plane, dim, "it is split into parts of fixed, different lengths")
    return [tidy(p) for p in plane.split(lengths, dim)]


@rule("index")
def _index(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    chosen = args[1]
    if len(chosen) == 1 and flow.is_chosen_by_input(chosen[0]):  # words are looked up in a parameter
        table = flow.layers.of_table(args[0])
        if table is not None:
            return table.output.expand(out.shape)
    plane = flow.planes.of(args[0])
    return None if plane is None else tidy(func(plane, *args[1:], **kwargs))


@rule("cat", "stack")
def _cat(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    tensors = [t for t in args[0] if t.numel()]
    planes = [flow.planes.of(t) for t in tensors]
    if name == "stack":
        tensors = [t.unsqueeze(dim) for t in tensors]
        planes = [None if p is None else p.unsqueeze(dim) for p in planes]
    if all(p is None for p in planes):
        return None
    if any(set(varying(p)) - {dim} for p in planes if p is not None) and not _by_channel(flow, planes, dim):
        return _cat_beside(flow, tensors, planes, dim, out)
    found = []
    for tensor, plane in zip(tensors, planes, strict=True):
        reason = "several of its channels are concatenated as one"
        ids = None if plane is None else core(flow.ids.only_along(plane, [dim], reason))
        flat = torch.full((1,), FIXED) if ids is None else ids.reshape(-1)
        found.append(flat if len(flat) == tensor.shape[dim] else flat[:1].expand(tensor.shape[dim]))
    shape = [1] * out.ndim
    shape[dim] = -1
    return tidy(torch.cat(found).reshape(shape).expand(out.shape))


def _by_channel(flow: Flow, planes: list[Tensor | None], dim: int) -> bool:
    """Whether channels lie along ``dim`` in all parts, and in some along it alone.

    In others they may lie along positions too, as behind a pixel shuffle that is written by hand.
    """
    followed = [varying(p) for p in planes if p is not None and varying(p)]
    return all(dim in dims for dims in followed) and any(dims == [dim] for dims in followed)


def _cat_beside(flow: Flow, tensors: Any, planes: list[Tensor | None], dim: int, out: Tensor) -> Tensor | None:
    """Concatenation along a dimension other than the channels': channels are the same in every part."""
    others = [d for d in range(out.ndim) if d != dim]
    rows = [
        None
        if p is None
        else flow.ids.only_along(p, others, "it is concatenated along another dimension").narrow(dim, 0, 1)
        for p in planes
    ]
    joined = flow.ids.combine([(row, t.narrow(dim, 0, 1)) for row, t in zip(rows, tensors, strict=True)])
    return None if joined is None else joined.expand(out.shape)


@rule("constant_pad_nd")
def _pad(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    changing = varying(plane)
    pad = [n if out.ndim - 1 - i // 2 in changing else 0 for i, n in enumerate(args[1])]
    return tidy(func(core(plane), pad, FIXED).expand(out.shape))


@rule("copy_")
def _copy(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane, target = flow.planes.of(args[1]), args[0]
    whole = target.untyped_storage().nbytes() == target.numel() * target.element_size()
    if plane is not None and not (whole or flow.write(target, plane.expand(target.shape))):
        flow.ids.freeze(core(plane), "it is written into a part of a tensor")
    return None if plane is None else plane.expand(out.shape)
