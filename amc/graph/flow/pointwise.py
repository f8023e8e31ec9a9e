"""Element by element, and over positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.graph.elements import core, varying
from amc.graph.flow.follow import Flow
from amc.graph.flow.rules import rule


@rule("pointwise", "masked_fill", "where", "gelu", "silu", "hardtanh", "relu6", "prelu", "_prelu_kernel", "copysign",
      "hardswish", "hardsigmoid", "mish", "softplus", "elu", "leaky_relu", "threshold", "clamp")  # fmt: skip
def _pointwise(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
    planes = [flow.plane(t) for t in tensors]
    aligned = [None if p is None else p.reshape(*[1] * (first.ndim - p.ndim), *p.shape) for p in planes]
    joined = flow.joined(list(zip(aligned, tensors, strict=True)))
    return None if joined is None else joined.expand(first.shape)


@rule("_softmax", "_log_softmax")
def _softmax(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.plane(args[0])
    if plane is None:
        return None
    others = [d for d in range(plane.ndim) if d != args[1] % plane.ndim]
    return flow.only_along(plane, others, "a softmax runs over its channels")


@rule("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm", "var_mean")
def _reduce(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.plane(args[0])
    if plane is None:
        return None
    place = 2 if name == "linalg_vector_norm" else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    dims = range(plane.ndim) if not isinstance(dims, list | tuple | int) or dims == [] else dims
    gone = {d % plane.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    left = [d for d in varying(plane) if d not in gone]
    over = [d for d in varying(plane) if d in gone]
    first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
    if not left:
        if len(over) == 1:
            flow.mixes(over[0], core(plane).reshape(-1))
        elif over:
            flow.only_along(plane, [], f"{name} runs over its channels")
        return None
    plane = flow.only_along(plane, left, f"{name} runs over its channels")
    for dim in sorted(gone, reverse=True):
        plane = plane.narrow(dim, 0, 1) if first.ndim == plane.ndim else plane.select(dim, 0)
    found = plane.expand(first.shape)
    return [found] * len(tree_leaves(out))


@rule(*(f"{kind}{d}d" for d in (1, 2, 3) for kind in ("avg_pool", "_adaptive_avg_pool", "adaptive_avg_pool",
         "reflection_pad", "replication_pad")),
       *(f"{kind}{d}d" for d in (1, 2, 3) for kind in ("upsample_nearest", "_upsample_nearest_exact")),
       *(f"{kind}{d}d_with_indices" for d in (1, 2, 3) for kind in ("max_pool",)),
       "adaptive_max_pool2d", "max_pool2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d",
       "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_trilinear3d")  # fmt: skip
def _spatial(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.plane(args[0])
    if plane is None:
        return None
    space = int(next(c for c in name if c.isdigit()))
    outer = list(range(plane.ndim - space))
    small = core(flow.only_along(plane, outer, "a pooling runs over its channels"))
    return [small.expand(t.shape) for t in tree_leaves(out)]


@rule("im2col")
def _im2col(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.plane(args[0])
    if plane is None:
        return None
    channels = core(flow.only_along(plane, [1], "a window runs over its channels"))[0, :, 0, 0]
    return channels.repeat_interleave(out.shape[1] // len(channels))[None, :, None].expand(out.shape)
