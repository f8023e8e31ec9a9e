"""Rules of operators that work element by element, or over positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.graph.elements import core, tidy, varying
from amc.graph.flow.flow import Flow
from amc.graph.flow.rules import rule


@rule("pointwise", "masked_fill", "where", "gelu", "silu", "hardtanh", "relu6", "prelu", "_prelu_kernel", "copysign",
      "hardswish", "hardsigmoid", "mish", "softplus", "elu", "leaky_relu", "threshold", "clamp")  # fmt: skip
def _pointwise(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
    planes = [flow.planes.of(t) for t in tensors]
    aligned = [None if p is None else p.reshape(*[1] * (first.ndim - p.ndim), *p.shape) for p in planes]
    joined = flow.ids.combine(list(zip(aligned, tensors, strict=True)))
    return None if joined is None else joined.expand(first.shape)


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    others = [d for d in range(plane.ndim) if d != args[1] % plane.ndim]
    return flow.ids.only_along(plane, others, "a softmax runs over its channels")


@rule("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm", "var_mean", "max", "min", "logsumexp", "prod",
      "median", "nanmedian", "nansum", "std_mean", "aminmax", "any", "all", "argmax", "argmin")  # fmt: skip
def _reduce(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    if len(args) > 1 and isinstance(args[1], Tensor):  # torch.max of two tensors
        return _pointwise(flow, name, func, args, kwargs, out)
    place = 2 if name == "linalg_vector_norm" else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    dims = range(plane.ndim) if not isinstance(dims, list | tuple | int) or dims == [] else dims
    reduced = {d % plane.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    left = [d for d in varying(plane) if d not in reduced]
    over = [d for d in varying(plane) if d in reduced]
    first = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
    if not left:
        if len(over) == 1:
            flow.take_statistic(over[0], core(plane).reshape(-1))
        elif over:
            flow.ids.only_along(plane, [], f"{name} runs over its channels")
        return None
    plane = flow.ids.only_along(plane, left, f"{name} runs over its channels")
    for dim in sorted(reduced, reverse=True):
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
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    space = int(next(c for c in name if c.isdigit()))
    outer = list(range(plane.ndim - space))
    small = core(flow.ids.only_along(plane, outer, "a pooling runs over its channels"))
    return [small.expand(t.shape) for t in tree_leaves(out)]


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "msort", "argsort", "topk", "kthvalue", "mode")
def _ordered(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """Along positions channels stay apart; along channels each depends on the others."""
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    place = 2 if name in ("topk", "kthvalue") else 1
    given = next((a for a in args[place:] if type(a) is int), None)
    dim = kwargs.get("dim", (0 if name == "msort" else -1) if given is None else given) % plane.ndim
    others = [d for d in varying(plane) if d != dim]
    if dim in varying(plane) and not others:
        flow.ids.freeze(core(plane), f"{name} runs over its channels")
        return None
    plane = flow.ids.only_along(plane, others, f"{name} runs over its channels").narrow(dim, 0, 1)
    return [
        (plane if t.ndim == plane.ndim else plane.select(dim, 0)).expand(t.shape)
        for t in tree_leaves(out) if isinstance(t, Tensor)
    ]  # fmt: skip


@rule("gather")
def _gather(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    """Places along one dimension are taken by indices, as `torch.quantile` does. Other dimensions may be cut short."""
    plane, dim = flow.planes.of(args[0]), args[1] % max(1, out.ndim)
    if plane is None:
        return None
    others = [d for d in varying(plane) if d != dim]
    if (dim in varying(plane) and not others) or any(out.shape[d] != plane.shape[d] for d in others):
        flow.ids.freeze(core(plane), f"{name} runs over its channels")
        return None
    plane = flow.ids.only_along(plane, others, f"{name} runs over its channels").narrow(dim, 0, 1)
    chosen = flow.planes.of(args[2])
    if chosen is not None:
        chosen = flow.ids.only_along(chosen, [d for d in varying(chosen) if d != dim], f"{name} runs over its channels")
        chosen = chosen.narrow(dim, 0, 1)
    found = flow.ids.combine([(plane, args[0].narrow(dim, 0, 1)), (chosen, args[2].narrow(dim, 0, 1))])
    return None if found is None else found.expand(out.shape)


@rule("glu")
def _glu(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    """The second half along a dimension gates the first."""
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % plane.ndim
    flow.cut_into_equal_parts(plane, dim, 2)
    first, second = plane.chunk(2, dim)
    joined = flow.ids.join(tidy(first), tidy(second))
    return None if joined is None else joined.expand(out.shape)


@rule("log_sigmoid_forward", "rrelu_with_noise", "rrelu_with_noise_functional")
def _one_operand(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    shapes = [t.shape for t in tree_leaves(out) if isinstance(t, Tensor)]
    return None if plane is None else [plane if shape == plane.shape else None for shape in shapes]


@rule("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback", "max_unpool2d", "max_unpool3d")
def _sampled(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    """Positions are sampled by a grid ``[N, H, W, 2]`` that all channels share, or by indices of each channel."""
    ids = flow.ids.channels_along(flow.planes.of(args[0]), 1, out.shape[1], f"{name} runs over its channels")
    chosen = flow.planes.of(args[1])
    if chosen is not None and name.startswith("max_unpool"):
        by_channel = flow.ids.only_along(chosen, [1], f"{name} runs over its channels")
        if ids is not None:
            flow.ids.tie(ids, core(by_channel).reshape(-1))
    elif chosen is not None:
        flow.ids.freeze(core(chosen), "it says where others are sampled")
    return None if ids is None else ids.reshape(1, -1, *[1] * (out.ndim - 2)).expand(out.shape)


@rule("col2im")
def _col2im(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    """Windows ``[N, C·k, L]`` are added up to ``[N, C, H, W]``: the k rows of a channel go together."""
    reason = "a window runs over its channels"
    ids = flow.ids.channels_along(flow.planes.of(args[0]), args[0].ndim - 2, args[0].shape[-2], reason)
    if ids is None:
        return None
    rows = ids.reshape(out.shape[-3], -1)
    flow.ids.tie(rows[:, :1], rows, reason)
    return rows[:, 0, None, None].expand(out.shape)


@rule("im2col")
def _im2col(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> Any:
    plane = flow.planes.of(args[0])
    if plane is None:
        return None
    channels = core(flow.ids.only_along(plane, [1], "a window runs over its channels"))[0, :, 0, 0]
    return channels.repeat_interleave(out.shape[1] // len(channels))[None, :, None].expand(out.shape)
