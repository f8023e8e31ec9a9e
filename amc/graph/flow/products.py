"""Rules of products of activations, as attention has them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc.graph.elements import core, varying
from amc.graph.flow.flow import Flow
from amc.graph.flow.rules import rule


def two_matrices(flow: Flow, func: Any, args: Any, kwargs: Any, out: Tensor, a: Tensor, b: Tensor) -> Any:
    """The product of two activations ``[n, k] @ [k, m]``."""
    planes = [None if p is None else p[None] for p in (flow.planes.of(a), flow.planes.of(b))]
    found = _product(flow, func, args, kwargs, out, planes[0], planes[1])
    return None if found is None else found[0].expand(out.shape)


@rule("bmm", "baddbmm")
def _bmm(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    first, second = args[-2:]
    found = _product(flow, func, args, kwargs, out, flow.planes.of(first), flow.planes.of(second))
    if name == "baddbmm":
        found = flow.ids.combine([(found, out), (flow.planes.of(args[0]), args[0])])
    return None if found is None else found.expand(out.shape)


def _product(
    flow: Flow, func: Any, args: Any, kwargs: Any, out: Tensor, first: Tensor | None, second: Tensor | None
) -> Tensor | None:
    """``[b, n, k] @ [b, k, m]``: channels along b (heads) are cut together, those along n or m stay as they are."""
    together = "its channels are multiplied with one another"
    planes = [
        flow.ids.only_along(p, [0], "they are one head") if p is not None and 0 in varying(p) else p
        for p in (first, second)
    ]
    heads = [p for p in planes if p is not None and 0 in varying(p)]
    if heads:
        if len(heads) == 2:
            flow.ids.tie(core(heads[0]), core(heads[1]))
        else:
            flow.ids.freeze(core(heads[0]), together)
        for plane in planes:
            if plane is not None and 0 not in varying(plane):
                flow.ids.freeze(core(plane), together)
        flow.count_product(func, args, kwargs, out, core(heads[0]))
        return core(heads[0]).reshape(-1, 1, 1)
    a, b = planes
    found = None
    for plane, inner, outer in ((a, 2, 1), (b, 1, 2)):
        if plane is None:
            continue
        if inner in varying(plane):
            flow.ids.freeze(core(plane), together)
        elif outer in varying(plane):
            if found is not None:
                flow.ids.freeze(core(plane), together)
                continue
            found = core(plane)
            flow.count_product(func, args, kwargs, out, found)
    return found


@rule("_scaled_dot_product_flash_attention_for_cpu")
def _attention(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """``[B, heads, N, D]`` each."""
    heads: Tensor | None = None
    for tensor in args[:3]:
        plane = flow.planes.of(tensor)
        if plane is None:
            continue
        if 1 in varying(plane):
            small = core(flow.ids.only_along(plane, [1], "they are one head"))
            heads = small if heads is None else heads
            flow.ids.tie(heads, small)
        else:
            flow.ids.freeze(core(plane), "its channels are multiplied with one another")
    if heads is None:
        return None
    mask = kwargs.get("attn_mask")
    if mask is not None:
        plane = flow.planes.of(mask)
        aligned = None if plane is None else plane.reshape(*[1] * (4 - plane.ndim), *plane.shape)
        flow.ids.combine([(heads, args[0]), (aligned, mask)])
    flow.count_product(func, args, kwargs, out, heads)
    return [heads.expand(out[0].shape), heads[..., 0].expand(out[1].shape)]
