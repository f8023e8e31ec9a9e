"""Statistics for criteria, collected over the calibration split; only those that a criterion needs are collected.

===========  ==============================================================  =====================================
need         tables (tensors by name)                                        passes
===========  ==============================================================  =====================================
activations  ``SITE`` ``[4, C]``: mean, mean square, mean |a|, share of 0     one forward, `IMAGES` samples
gradients    ``gradient/WEIGHT``, ``square/WEIGHT``: mean g, mean g²;         one forward and backward, `GRADIENTS`
             ``activation/SITE``, ``weight/SITE`` ``[N, C]``: Σ a g, Σ w g    samples one at a time
curvature    ``WEIGHT``: diagonal of the loss's Hessian                       see `amc.importance.curvature`
flow         ``SITE`` ``[C]``                                                 see `amc.importance.synflow`
attention    ``SITE`` ``[C]``                                                 see `amc.importance.attention`
===========  ==============================================================  =====================================

Activations are taken where the site's channels are read: inputs of convolutions and linear layers that are called as
modules. Where there are none, outputs of the layers that produce the channels count. Samples go backward one at a
time: derivatives of every sample are exact whatever a network does with its batch axis, and take little memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from amc.errors import ConfigError, first_line
from amc.graph.channels import Axis
from amc.graph.sites import Graph
from amc.graph.surgery import shallow_copy
from amc.importance.criterion import Need
from amc.importance.group import slots
from amc.runtime.onednn import SafeGradients
from amc.task import Task, batches, nested
from amc.task.splits import sample

Table = Mapping[str, Tensor]
Statistics = Mapping[Need, Table]
"""A table for each need that is collected."""

IMAGES = 1024
GRADIENTS = 256
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Place:
    """Where the channels of a site are observed: an input or an output of a module."""

    site: int
    module: str
    reads: bool
    length: int
    """Of the axis that `positions` count along."""
    positions: Tensor
    channels: Tensor

    def values(self, tensor: Tensor, linear: bool) -> Tensor | None:
        """The site's elements of the module's input or output, ``[P, n]``; None where that has another shape."""
        if tensor.ndim < 2:
            return None
        lines = tensor.movedim(-1 if linear else 1, 0).flatten(1)
        if len(lines) % self.length:
            return None
        groups = len(lines) // self.length  # a grouped convolution's channel is one of each group
        return lines.reshape(groups, self.length, -1).transpose(0, 1).flatten(1)[self.positions]


def places(graph: Graph, model: nn.Module) -> list[Place]:
    """Where the channels of every site are read; where nothing reads them, where they are produced."""
    layers = [layer for layer in graph.layers if layer.is_conv_or_linear]
    found = [p for x in layers for p in _places(x.name, True, x.input)]
    seen = {place.site for place in found}
    return found + [p for x in layers for p in _places(x.name, False, x.output) if p.site not in seen]


def _places(module: str, reads: bool, axis: Axis | None) -> Iterator[Place]:
    if axis is None:
        return
    for site in np.unique(axis.site[axis.site >= 0]).tolist():
        mine = np.flatnonzero(axis.site == site)
        yield Place(site, module, reads, len(axis), torch.from_numpy(mine), torch.from_numpy(axis.channel[mine]))


@contextlib.contextmanager
def watching(model: nn.Module, where: Sequence[Place], see: Callable[[str, bool, Tensor], Tensor]) -> Iterator[None]:
    """Calls ``see(module, reads, tensor)`` for every input and output at the places; its result replaces the tensor."""

    def before(name: str) -> Callable[..., Any]:
        return lambda module, args: (see(name, True, args[0]), *args[1:]) if args else None

    def after(name: str) -> Callable[..., Any]:
        return lambda module, args, output: see(name, False, output)

    hooks = []
    for name, reads in dict.fromkeys((p.module, p.reads) for p in where):
        module = model.get_submodule(name)
        hooks.append(
            module.register_forward_pre_hook(before(name)) if reads else module.register_forward_hook(after(name))
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def by_channel(values: Tensor, channels: Tensor, count: int) -> Tensor:
    """Sums over the positions of each channel: ``[P]`` or ``[P, n]`` to ``[C]`` or ``[C, n]``, float64.

    >>> by_channel(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 0]), 2).tolist()
    [4.0, 2.0]
    """
    zeros = torch.zeros(count, *values.shape[1:], dtype=torch.float64, device=values.device)
    return zeros.index_add_(0, channels.to(values.device), values.double())


def collect_activations(task: Task, graph: Graph) -> dict[str, Tensor]:
    """``[4, C]`` for every site, by its number. A site that no module reads or produces has none."""
    where = places(graph, task.model)
    sums: dict[int, Tensor] = {}

    def see(name: str, reads: bool, tensor: Tensor) -> Tensor:
        linear = isinstance(task.model.get_submodule(name), nn.Linear)
        for place in where:
            if (place.module, place.reads) != (name, reads):
                continue
            x = place.values(tensor.detach(), linear)
            if x is not None:
                own = by_channel(_sums(x), place.channels, graph.sites[place.site].channels)
                sums[place.site] = sums[place.site] + own if place.site in sums else own
        return tensor

    with torch.inference_mode(), watching(task.model, where, see):
        for inputs, _ in batches(sample(task.splits.calibration, IMAGES), min(_BATCH, task.batch)):
            nested.call(task.model, nested.to(inputs, task.device))
    return {str(site): (own[:, :4] / own[:, 4:]).T.clone().cpu() for site, own in sums.items()}


def _sums(x: Tensor) -> Tensor:
    """Sums of values ``[P, n]``: of a, a², |a|, a = 0 and of ones, ``[P, 5]``."""
    sums = [y.sum(1, dtype=torch.float64) for y in (x, x.square(), x.abs(), x == 0)]
    return torch.stack([*sums, torch.full_like(sums[0], x.shape[1])], 1)


def collect_gradients(task: Task, graph: Graph) -> dict[str, Tensor]:
    """Derivatives of the loss by weights and activations; see the table above. Raises ConfigError."""
    model, where = trainable_copy(task.model), places(graph, task.model)
    own = [list(slots(graph, model, site)) for site in range(len(graph.sites))]
    weights = {slot.tensor: model.get_parameter(slot.tensor) for group in own for slot in group
               if is_parameter(model, slot.tensor)}  # fmt: skip
    samples = sample(task.splits.calibration, GRADIENTS)
    found = {f"{kind}/{name}": torch.zeros_like(w) for kind in ("gradient", "square") for name, w in weights.items()}
    rows: dict[str, list[Tensor]] = {}
    for inputs, targets in batches(samples, 1):
        read, loss = _loss(task, model, where, inputs, targets)
        slopes = derivatives(loss, [*weights.values(), *(tensor for _, _, tensor in read)])
        gradients = dict(zip(weights, slopes, strict=False))
        for name, gradient in gradients.items():
            if gradient is not None:
                found[f"gradient/{name}"] += gradient / len(samples)
                found[f"square/{name}"] += gradient.square() / len(samples)
        products = [(n, r, t.detach() * g) for (n, r, t), g in zip(read, slopes[len(weights) :], strict=True)
                    if g is not None]  # fmt: skip
        for site, sums in _activation_sums(graph, model, where, products).items():
            rows.setdefault(f"activation/{site}", []).append(sums)
        for site, group in enumerate(own):
            channels = graph.sites[site].channels
            parts = [by_channel(slot.rows(weights[slot.tensor].detach() * gradient).sum(1), slot.channels, channels)
                     for slot in group if (gradient := gradients.get(slot.tensor)) is not None]  # fmt: skip
            if parts:
                rows.setdefault(f"weight/{site}", []).append(torch.stack(parts).sum(0))
    return {**{name: tensor.cpu() for name, tensor in found.items()},
            **{name: torch.stack(sums).cpu() for name, sums in rows.items()}}  # fmt: skip


def _loss(
    task: Task, model: nn.Module, where: Sequence[Place], inputs: Any, targets: Any
) -> tuple[list[tuple[str, bool, Tensor]], Tensor]:
    """The tensors at the places in a forward pass, and the loss."""
    read: list[tuple[str, bool, Tensor]] = []

    def see(name: str, reads: bool, tensor: Tensor) -> Tensor:
        own = tensor.clone()  # its derivative is this reader's alone
        read.append((name, reads, own))
        return own.clone()  # the next operators may write into it

    with torch.enable_grad(), watching(model, where, see), SafeGradients(model).active():
        outputs = nested.call(model, nested.to(inputs, task.device))
    return read, task.objective.loss(outputs, nested.to(targets, task.device)).sum()


def derivatives(loss: Tensor, by: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Derivatives of the loss; None where it does not depend on a tensor. Raises ConfigError where there are none."""
    try:
        known = [tensor for tensor in by if tensor.requires_grad]
        slopes = iter(torch.autograd.grad(loss, known, allow_unused=True))
    except RuntimeError as error:
        raise no_derivatives(error) from error
    return tuple(next(slopes) if tensor.requires_grad else None for tensor in by)


def no_derivatives(error: Exception) -> ConfigError:
    """The error for a network that cannot be differentiated."""
    return ConfigError(
        f"the criterion needs derivatives, which this network cannot give ({first_line(error)}): "
        "use one that does without, such as --criterion obs or l1."
    )


def _activation_sums(
    graph: Graph, model: nn.Module, where: Sequence[Place], products: Sequence[tuple[str, bool, Tensor]]
) -> dict[int, Tensor]:
    """Sums over positions and places of activation × derivative, ``[C]`` for every site."""
    sums: dict[int, Tensor] = {}
    for name, reads, product in products:
        linear = isinstance(model.get_submodule(name), nn.Linear)
        for place in where:
            if (place.module, place.reads) == (name, reads):
                values = place.values(product, linear)
                if values is not None:
                    own = by_channel(values.sum(1), place.channels, graph.sites[place.site].channels)
                    sums[place.site] = sums[place.site] + own if place.site in sums else own
    return sums


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy whose weights are parameters with gradients; parametrizations are removed."""
    own = shallow_copy(model).eval().requires_grad_(True)
    for module in list(own.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return own


def is_parameter(model: nn.Module, name: str) -> bool:
    """Whether a tensor of the network is a parameter, and not a buffer or computed.

    >>> is_parameter(nn.BatchNorm2d(2), "running_mean")
    False
    """
    holder, _, key = name.rpartition(".")
    return key in model.get_submodule(holder)._parameters
