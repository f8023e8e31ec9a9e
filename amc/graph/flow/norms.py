"""Rules of normalisations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc.graph.elements import core, varying
from amc.graph.flow.flow import Flow
from amc.graph.flow.rules import rule


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm")
def _batch_norm(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor) and tensor.ndim == 1:
            own = flow.planes.of(tensor)
            if own is not None:
                plane = flow.ids.join(plane, own.reshape(1, -1, *[1] * (args[0].ndim - 2)))
            else:
                flow.ids.meet_constant(plane, tensor.reshape(1, -1, *[1] * (args[0].ndim - 2)))
    ids = flow.ids.channels_along(plane, 1, args[0].shape[1], "a norm runs over its channels")
    if plane is None or ids is None:
        return None
    if args[1] is None and args[3] is None:
        flow.plain_norms[flow.running.name] = ids
    rest = [ids if t.ndim == 1 and t.shape == ids.shape else None for t in out[1:]] if ids is not None else []
    return [plane.expand(out[0].shape), *rest]


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    plane = flow.planes.of(args[0])
    inner = range(args[0].ndim - len(args[1]), args[0].ndim)
    if plane is None:
        return None
    over = [d for d in varying(plane) if d in inner]
    if len(over) > 1 or (over and len(varying(plane)) > 1):
        plane = flow.ids.only_along(
            plane, [d for d in varying(plane) if d not in inner], "a norm runs over its channels"
        )
    elif over:
        flow.take_statistic(over[0], core(plane).reshape(-1))
    for tensor in args[2:4]:
        own = flow.planes.of(tensor)
        if own is not None:
            plane = flow.ids.join(plane, own.reshape(*[1] * (args[0].ndim - own.ndim), *own.shape))
    if args[2] is None and over:
        flow.plain_norms[flow.running.name] = core(plane).reshape(-1)  # type: ignore[arg-type]
    if over:
        return [plane]
    for dim in inner:  # over positions only: mean and deviation of every channel
        plane = plane.narrow(dim, 0, 1)  # type: ignore[union-attr]
    return [plane.expand(t.shape) if t.ndim == plane.ndim else None for t in out]  # type: ignore[union-attr]


@rule("native_group_norm")
def _group_norm(flow: Flow, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    x, groups = args[0], int(args[6])
    plane = flow.planes.of(x)
    if plane is None:
        return None
    reason = f"a norm has {groups} groups"
    ids = flow.ids.channels_along(plane, 1, x.shape[1], reason)
    if ids is None:
        return [plane]
    if groups > 1:
        blocks = ids.reshape(groups, -1)
        whole = groups >= blocks.shape[1]
        flow.group_norms[flow.running.name] = whole
        flow.ids.tie(blocks[:, :1] if whole else blocks[:1], blocks, reason)
    if groups == 1 or not flow.group_norms[flow.running.name]:
        flow.take_statistic(1, ids)
    if args[1] is None:
        flow.plain_norms[flow.running.name] = ids
    found: Tensor | None = ids.reshape(1, -1, *[1] * (x.ndim - 2)).expand(x.shape)
    for tensor in args[1:3]:
        own = flow.planes.of(tensor)
        if own is not None:
            found = flow.ids.join(found, own.reshape(1, -1, *[1] * (x.ndim - 2)))
    per_group = ids.reshape(groups, -1)[:, 0].expand(out[1].shape) if flow.group_norms.get(flow.running.name) else None
    return [found, per_group, per_group]
