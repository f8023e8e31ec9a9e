"""The trial that every site must pass: a copy without some channels is compared with what is predicted of it.

Its outputs are compared with those of the whole network in which the removed channels are ignored: layers are given the
other inputs only, and statistics over channels (layer normalisation, means) leave them out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc.errors import first_line
from amc.graph.attention import adapt, adapted
from amc.graph.channels import CONVS, Ints, Kept, Layer, Statistic
from amc.graph.flow import STATISTICS
from amc.graph.sites import Graph
from amc.graph.surgery import ChannelCutter, axes_of, holder_of, own_tensors, shallow_copy
from amc.graph.trace import Trace, trace
from amc.task import nested
from amc.task.nested import Nested


class Trial:
    """Cuts a copy of the network and compares it with what a graph predicts."""

    def __init__(self, model: nn.Module, example: Nested, traced: Trace) -> None:
        self._traced = traced
        self._copy = shallow_copy(model)  # requires_grad too: matrix products run other operators without it
        adapt(self._copy)
        _randomise_zeros(self._copy)
        # noise on top of the example: mistakes would not show in an image of zeros
        generator = torch.Generator().manual_seed(0)
        self._inputs = nested.mapped(lambda leaf: _noisy(leaf, generator), example)

    def __call__(self, graph: Graph) -> str | None:
        """Why the sites cannot be cut together; None where they can.

        Neighbouring sites keep different shares, and others in the second round: with equal shares it would not show
        that sites depend on each other.
        """
        rng = np.random.default_rng(0)
        for number in range(2):
            shares = np.resize(np.roll(_SHARES, number), len(graph.sites))
            kept = [
                _random_channels(site.channels, share, rng) for site, share in zip(graph.sites, shares, strict=True)
            ]
            reason = self._cut(graph, kept)
            if reason is not None:
                return reason
        return None

    def _cut(self, graph: Graph, kept: Kept) -> str | None:
        cutter = ChannelCutter(self._copy, graph.layers)
        try:
            cutter.cut(kept)
            after = trace(self._copy, self._inputs)
        except Exception as error:  # noqa: BLE001  (whatever a foreign network does when it is cut)
            return f"the network breaks without some of its channels ({first_line(error)})"
        finally:
            cutter.cut([np.arange(site.channels) for site in graph.sites])
        return self._difference(graph, kept, after)

    def _difference(self, graph: Graph, kept: Kept, after: Trace) -> str | None:
        before = self._traced
        if [o.shape for o in after.outputs] != [o.shape for o in before.outputs]:
            return "it changes the shape of the network's output"
        if after.sizes.shape != before.sizes.shape or after.live.shape != before.live.shape:
            return _DECIDES if before.reads_values else "the network runs differently without some of its channels"
        macs = before.macs - _saved_macs(graph.layers, kept)
        if after.macs != macs:
            return f"its cost is not what its layers say ({after.macs} MACs, not {macs})"
        removed = np.array([s.channels - len(k) for s, k in zip(graph.sites, kept, strict=True)])
        if not np.allclose(before.sizes - graph.growth @ removed, after.sizes):
            return _SIZES_DECIDED if before.reads_values else _DO_NOT_GROW
        expected = masked_outputs(self._copy, graph, kept, self._inputs)
        if not all(map(_close, after.outputs, expected)):
            return "removing its channels is not the same as ignoring them"
        return None


_DECIDES = "the network decides by values of its input (an if on a tensor, .item(), int(...) or float(...))"
_SIZES_DECIDED = "the sizes of tensors depend on values of its input (x[mask], masked_select, nonzero or unique)"
_DO_NOT_GROW = "tensors do not shrink with its channels (is a number of channels or heads written in its code?)"
_SHARES = (0.67, 0.5, 0.84, 0.34, 0.75)


def _random_channels(channels: int, share: float, rng: np.random.Generator) -> Ints:
    """About that share of the channels, but at least one, and not all."""
    count = max(1, min(channels - 1, round(share * channels)))
    return np.sort(rng.choice(channels, count, replace=False)).astype(np.int64)


def masked_outputs(model: nn.Module, graph: Graph, kept: Kept, inputs: Nested) -> list[Tensor]:
    """The outputs of the whole network when the channels that are not kept are ignored.

    >>> from amc.graph import build_graph
    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    >>> for parameter in model.parameters():
    ...     _ = nn.init.ones_(parameter)
    >>> graph = build_graph(model, torch.ones(1, 1))
    >>> masked_outputs(model, graph, [np.array([0])], torch.ones(1, 1))[0].item()
    1.0
    """
    called = graph.trace.layers
    with (
        torch.no_grad(),
        adapted(model),
        _without_removed_inputs(model, graph.layers, kept, called),
        _Statistics(graph.statistics, kept),
    ):
        return [t for t in tree_leaves(nested.call(model, inputs)) if isinstance(t, Tensor)]


@contextmanager
def _without_removed_inputs(
    model: nn.Module, layers: Sequence[Layer], kept: Kept, called: Container[str]
) -> Iterator[None]:
    """Layers read the kept inputs only. Weights that a function uses keep their shape, with zeros for the others."""
    handles: list[Any] = []
    whole: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for layer in layers:
            if layer.input is None:
                continue
            positions = torch.from_numpy(layer.input.kept(kept))
            for key, tensor in own_tensors(model, layer).items():
                axes = axes_of(model, layer, key, tuple(tensor.shape))
                holder, own = holder_of(model, layer, key), key.rpartition(".")[2]
                if tensor.ndim > 1 and any(axis is layer.input for axis in axes):
                    dim = next(
                        d for d, axis in enumerate(axes) if axis is layer.input and (d or axes[0] is not axes[1])
                    )
                    held: dict[str, Any] = holder._parameters if own in holder._parameters else holder._buffers
                    whole.append((held, own, held[own]))
                    changed = _changed(tensor, dim, positions, bare=layer.name not in called)
                    trains = held[own].requires_grad
                    held[own] = nn.Parameter(changed, trains) if isinstance(held[own], nn.Parameter) else changed
            if layer.name in called:
                module = model.get_submodule(layer.name)
                handles.append(module.register_forward_pre_hook(_gather(module, len(layer.input), positions)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for held, own, before in whole:
            held[own] = before


def _changed(tensor: Tensor, dim: int, positions: Tensor, bare: bool) -> Tensor:
    """The weights of the kept inputs; ``bare`` ones keep their shape, with zeros for the others."""
    if not bare:
        return tensor.index_select(dim, positions)
    return torch.zeros_like(tensor).index_copy(dim, positions, tensor.index_select(dim, positions))


def _gather(module: nn.Module, length: int, positions: Tensor) -> Any:
    dim = -1 if isinstance(module, nn.Linear) else 1

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        groups = x.shape[dim] // length if isinstance(module, CONVS) else 1
        every = (torch.arange(groups)[:, None] * length + positions).flatten()
        return (x.index_select(dim, every), *inputs[1:])

    return hook


class _Statistics(TorchDispatchMode):
    """Statistics over channels leave out those that are not kept."""

    def __init__(self, statistics: Sequence[Statistic], kept: Kept) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = {s.number: (s.dim, torch.from_numpy(s.channels.kept(kept))) for s in statistics}
        self._number = -1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        self._number += name in STATISTICS
        if name not in STATISTICS or self._number not in self._kept:
            return func(*args, **(kwargs or {}))
        dim, positions = self._kept[self._number]
        x = args[0].index_select(dim, positions)
        rest: list[Any]
        if name == "native_group_norm":  # input, weight, bias, N, C, positions, groups, eps
            rest = [t.index_select(0, positions) if isinstance(t, Tensor) else t for t in args[1:]]
            rest[3] = len(positions)
        elif "norm" in name and name != "linalg_vector_norm":  # input, shape, weight, …
            shape, inner = list(args[1]), dim - (args[0].ndim - len(args[1]))
            shape[inner] = len(positions)
            rest = [t.index_select(inner, positions) if isinstance(t, Tensor) else t for t in args[1:]]
            rest[0] = shape
        else:
            return func(x, *args[1:], **(kwargs or {}))
        found = func(x, *rest, **(kwargs or {}))
        whole = torch.zeros_like(args[0]).index_copy(dim, positions, found[0])
        return (whole, *found[1:])


def _noisy(leaf: Tensor, generator: torch.Generator) -> Tensor:
    if not leaf.is_floating_point():
        return leaf
    noise = torch.randn(leaf.shape, generator=generator).to(leaf.device)
    return (leaf + noise).clone(memory_format=torch.contiguous_format)


def _randomise_zeros(model: nn.Module) -> None:
    """Fill parameters that are all zero with noise: no mistake would show behind a branch whose output is zero."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.numel() and not bool(parameter.any()):
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                module._parameters[key] = nn.Parameter(noise.to(parameter), parameter.requires_grad)


def _saved_macs(layers: Sequence[Layer], kept: Kept) -> int:
    saved = 0
    for layer in layers:
        if layer.positions and (layer.output or layer.input):
            left = layer.macs
            for axis in (layer.output, layer.input):
                left = left // len(axis) * len(axis.kept(kept)) if axis else left
            saved += layer.macs - left
    return saved


def _close(first: Tensor, second: Tensor) -> bool:
    scale = float(second.abs().max()) or 1.0
    return bool(torch.allclose(first, second, rtol=1e-3, atol=1e-3 * scale))
