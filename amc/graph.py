"""The channel groups of a network, and why some of its channels cannot be removed.

Torch-Pruning's dependency graph (DepGraph, arXiv:2301.12900) says which channels hang together; this is the
only module that knows it. What it says is not believed but tried: every group is pruned on a copy, and becomes
a site only when the copy runs, keeps its output's shape, costs exactly what was predicted, and computes what
the original computes with those channels silenced.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc import nested
from amc.channels import Axis, Ints, Kept, Layer
from amc.errors import ModelError, first_line
from amc.nested import Nested
from amc.surgery import Dresser
from amc.trace import Trace, trace

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TYPES = tp.ops.OPTYPE
_HOLDERS = (
    _TYPES.CONV,
    _TYPES.DEPTHWISE_CONV,
    _TYPES.LINEAR,
    _TYPES.BN,
    _TYPES.PRELU,
    _TYPES.LN,
    _TYPES.PARAMETER,
)
_PASSING = (
    _TYPES.ELEMENTWISE,
    _TYPES.CONCAT,
    _TYPES.SPLIT,
    _TYPES.RESHAPE,
    _TYPES.UNBIND,
    _TYPES.EXPAND,
    _TYPES.SLICE,
)


@dataclass(frozen=True, eq=False)
class Site:
    """A group of channels that can only be removed together."""

    name: str
    """The first layer that produces them."""
    channels: int
    layers: tuple[str, ...]
    """All layers whose outputs (or only channels) are cut."""
    consumers: tuple[str, ...]
    """All layers whose inputs are cut."""
    features: tuple[float, float, float, float, float, float] = (0, 0, 0, 0, 0, 0)
    """n, c, h, w, stride, k of the first layer: output and input channels, input height and width."""


@dataclass(frozen=True)
class Refusal:
    """Channels that are not offered as a site, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class Graph:
    """The sites of a network in forward order, and how its tensors depend on them."""

    sites: tuple[Site, ...]
    layers: tuple[Layer, ...]
    refusals: tuple[Refusal, ...]
    trace: Trace
    growth: NDArray[np.float64]
    """``[T, S]``: how many elements of activation t hang on one channel of site s."""


@dataclass(frozen=True, eq=False)
class _Member:
    """One side of one layer in a group: position ``positions[i]`` follows channel ``channels[i]``."""

    layer: str
    kind: str
    side: str
    positions: Ints
    channels: Ints


class _Refused(Exception):
    """Why a group cannot be a site."""


def build_graph(model: nn.Module, example: Nested) -> Graph:
    """The channel groups of ``model``, each tried on a copy. ``example`` is one sample ``[1, ...]``.

    Raises ModelError when the network cannot be traced, or has nothing to prune.
    """
    # one memory layout for all: another would run other operators
    example = nested.mapped(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), example)
    if model.training:
        raise ModelError("the network is in training mode: call .eval() first.")
    traced = _trace(model, example)
    dependencies = _dependency_graph(model, example)
    names = {module: name for name, module in reversed(list(model.named_modules()))}
    norms = _following_norms(dependencies, names)
    rough = _layers(model, traced, norms)
    groups: list[tuple[Site, list[_Member]]] = []
    refusals: list[Refusal] = []
    seen: set[str] = set()
    trial = _Trial(model, example, traced)
    growth: list[NDArray[np.float64]] = []
    for name in traced.layers:
        module = model.get_submodule(name)
        if name in seen or not isinstance(module, (*CONVS, nn.Linear)) or _is_depthwise(module):
            continue
        channels = module.weight.shape[0]
        try:
            members = _members(dependencies, module, names, model, int(traced.sizes.max()))
            seen |= {m.layer for m in members if m.side == "output"}
            site = _site(name, channels, members, model, traced)
            _with_axes(rough, [*groups, (site, members)], model)
            growth.append(trial(site, members, rough))
            groups.append((site, members))
        except _Refused as refused:
            refusals.append(Refusal(name, channels, str(refused)))
    if not groups:
        why = "; ".join(f"{r.name}: {r.reason}" for r in refusals[:3]) or "no convolution or linear layer was found"
        raise ModelError(f"there is nothing to prune in this network ({why}).")
    layers = _with_axes(rough, groups, model)
    return Graph(tuple(s for s, _ in groups), layers, tuple(refusals), traced, np.stack(growth, 1))


def _trace(model: nn.Module, example: Nested) -> Trace:
    try:
        return trace(model, example)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"the network fails on its example input: {first_line(error)}") from error


def _dependency_graph(model: nn.Module, example: Nested) -> Any:
    wanted = [p for p in model.parameters() if not p.requires_grad]
    try:
        for parameter in wanted:  # the dependency graph is read off autograd's
            parameter.requires_grad_(True)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            own = nested.mapped(torch.clone, example)
            return tp.DependencyGraph().build_dependency(
                model, example_inputs=own, forward_fn=nested.call, output_transform=_differentiable, verbose=False
            )
    except Exception as error:  # whatever a foreign tracer throws at a foreign network
        raise ModelError(
            f"the network's channels cannot be traced: {type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        for parameter in wanted:
            parameter.requires_grad_(False)


def _differentiable(outputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, CONVS) and 1 < module.groups == module.out_channels


def _following_norms(dependencies: Any, names: Mapping[Any, str]) -> dict[str, str]:
    """Layer → the BatchNorm that alone reads its output."""
    found = {}
    for module, node in dependencies.module2node.items():
        after = [other.module for other in node.outputs]
        if module not in names or len(after) != 1 or after[0] not in names:
            continue
        if isinstance(after[0], BATCH_NORMS) and after[0].running_mean is not None:
            found[names[module]] = names[after[0]]
    return found


def _layers(model: nn.Module, traced: Trace, norms: Mapping[str, str]) -> dict[str, Layer]:
    layers = {}
    for name, call in traced.layers.items():
        module = model.get_submodule(name)
        kind, positions = "other", 0
        if isinstance(module, CONVS):
            kind, positions = "conv", call.elements // module.out_channels * call.calls
        elif isinstance(module, nn.Linear):
            kind, positions = "linear", call.elements // module.out_features * call.calls
        elif isinstance(module, (*BATCH_NORMS, nn.LayerNorm)):
            kind = "norm"
        elif isinstance(module, nn.PReLU):
            kind = "prelu"
        taps = int(np.prod(module.kernel_size)) if isinstance(module, CONVS) else 1
        layers[name] = Layer(name, kind, None, None, _is_depthwise(module), positions, taps, norms.get(name))
    return layers


@contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Torch-Pruning's walk through a group raises when it names a channel past ``most``: it would never end."""
    group = tp.dependency.Group
    add = group.add_dep

    def checked(self: Any, dep: Any, idxs: Any) -> None:
        if max((i.idx for i in idxs), default=0) >= most:
            raise OverflowError("its channels multiply without end")
        add(self, dep, idxs)

    group.add_dep = checked
    try:
        yield
    finally:
        group.add_dep = add


def _members(dependencies: Any, module: Any, names: Mapping[Any, str], model: nn.Module, most: int) -> list[_Member]:
    """The group of all output channels of ``module``, as Torch-Pruning tells it."""
    count = module.weight.shape[0]
    prune = tp.prune_conv_out_channels if isinstance(module, CONVS) else tp.prune_linear_out_channels
    try:
        with _bounded(most):
            group = dependencies.get_pruning_group(module, prune, idxs=list(range(count)))
    except Exception as error:
        raise _Refused(f"its dependencies are not understood ({type(error).__name__}: {first_line(error)})") from error
    members: dict[tuple[str, str], tuple[str, list[int], list[int]]] = {}
    for dep, idxs in group:
        kind, target = dep.target.type, dep.target.module
        if kind in _PASSING or (kind == _TYPES.PRELU and target.num_parameters == 1):
            continue
        if kind == _TYPES.OUTPUT:
            raise _Refused("it is the network's output")
        if kind not in _HOLDERS:
            raise _Refused(f"it runs through {type(target).__name__}, which cannot be cut")
        if kind == _TYPES.PARAMETER:
            name = next(n for n, p in model.named_parameters() if p is target)
            axis = next(d for p, d in dependencies.unwrapped_parameters if p is target)
            label, side = "parameter", str(axis % target.ndim)
        else:
            name = names[target]
            if kind == _TYPES.CONV and target.groups > 1:
                raise _Refused(f"{name} is a grouped convolution ({target.groups} groups)")
            label = "layer"
            side = (
                "input"
                if dependencies.is_in_channel_pruning_fn(dep.handler) and not _is_depthwise(target)
                else "output"
            )
            if kind in (_TYPES.BN, _TYPES.PRELU, _TYPES.LN):
                side = "output"
        _, positions, channels = members.setdefault((name, side), (label, [], []))
        positions += list(idxs)
        channels += list(idxs.root_idxs) if hasattr(idxs, "root_idxs") else list(_roots(group, dep))
    return [_member(n, s, *rest) for (n, s), rest in members.items()]


def _roots(group: Any, dep: Any) -> Sequence[int]:
    return next(item.root_idxs for item in group.items if item.dep is dep)


def _member(name: str, side: str, kind: str, positions: list[int], channels: list[int]) -> _Member:
    pairs = dict(zip(positions, channels, strict=True))
    if any(pairs[p] != c for p, c in zip(positions, channels, strict=True)):
        raise _Refused(f"one channel of {name} follows two channels of the group")
    order = sorted(pairs)
    return _Member(name, kind, side, np.array(order, np.int64), np.array([pairs[p] for p in order], np.int64))


def _site(name: str, channels: int, members: list[_Member], model: nn.Module, traced: Trace) -> Site:
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for m in members:
        if m.kind == "layer" and any(owners[id(p)] > 1 for p in model.get_submodule(m.layer).parameters(recurse=False)):
            raise _Refused(f"{m.layer} shares its weights with another layer")
        counts = Counter(m.channels.tolist())
        if len(counts) != channels or len(set(counts.values())) > 1:
            raise _Refused(f"its channels are not treated alike in {m.layer}")
        if m.kind == "layer" and m.layer not in traced.layers:
            raise _Refused(f"{m.layer} did not run on the example input")
    consumers = tuple(m.layer for m in members if m.side == "input")
    if not consumers:
        raise _Refused("it is the network's output" if len(members) == 1 else "no layer reads it")
    module, call = model.get_submodule(name), traced.layers[name]
    conv = isinstance(module, CONVS)
    height, width = [float(v) for v in (*call.input[1:], 1, 1)[:2]] if conv else [1.0, 1.0]
    stride, kernel = (
        (float(module.stride[0]), float(module.kernel_size[0])) if isinstance(module, CONVS) else (1.0, 1.0)
    )
    inputs = float(call.input[0] if conv else call.input[-1])
    order = list(traced.layers)
    cut = sorted({m.layer for m in members if m.side != "input"}, key=lambda n: order.index(n) if n in order else -1)
    return Site(name, channels, tuple(cut), consumers, (float(channels), inputs, height, width, stride, kernel))


def _with_axes(
    layers: Mapping[str, Layer], groups: Sequence[tuple[Site, list[_Member]]], model: nn.Module
) -> tuple[Layer, ...]:
    """The layers with the axes that the groups cut. Raises _Refused where two groups claim one position."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    axes: dict[tuple[str, str], Axis] = {}
    parameters: dict[str, Layer] = {}
    for number, (_, members) in enumerate(groups):
        for m in members:
            if m.kind == "parameter":
                parameters[m.layer] = Layer(m.layer, f"parameter:{m.side}", None, None, False, 0)
                length = shapes[m.layer][int(m.side)]
            else:
                length = _length(model.get_submodule(m.layer), m.side)
            key = (m.layer, "output" if m.kind == "parameter" else m.side)
            if m.positions.max() >= length:
                raise _Refused(f"{m.layer} does not have the channels along its {m.side}")
            axis = axes.setdefault(key, Axis(np.full(length, -1), np.full(length, -1)))
            if (axis.site[m.positions] >= 0).any():
                raise _Refused(f"{m.layer} belongs to two groups")
            axis.site[m.positions] = number
            axis.channel[m.positions] = m.channels
    everything = {**layers, **parameters}
    return tuple(
        replace(layer, output=axes.get((name, "output")), input=axes.get((name, "input")))
        for name, layer in everything.items()
    )


def _length(module: nn.Module, side: str) -> int:
    if isinstance(module, (*CONVS, nn.Linear)):
        return int(module.weight.shape[0 if side == "output" else 1])
    tensor = next(t for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)] if t.ndim)
    return int(tensor.shape[-1])


class _Trial:
    """Prunes one group at a time on a copy and compares with what is expected."""

    def __init__(self, model: nn.Module, example: Nested, traced: Trace) -> None:
        self._traced = traced
        self._copy = copy.deepcopy(model).requires_grad_(False)
        _enliven(self._copy)
        # noise on top of the example: an image of zeros would hide mistakes
        generator = torch.Generator().manual_seed(0)
        self._inputs = nested.mapped(lambda leaf: _noisy(leaf, generator), example)

    def __call__(self, site: Site, members: list[_Member], layers: Mapping[str, Layer]) -> NDArray[np.float64]:
        """How each activation grows with a channel of the site ``[T]``; raises _Refused."""
        if site.channels < 2:
            raise _Refused("it has one channel only")
        everything = np.arange(site.channels)
        removed = everything[1 if site.channels > 2 else 0 :: 3]
        kept = np.setdiff1d(everything, removed)
        cut = _with_axes(layers, [(site, members)], self._copy)
        dresser = Dresser(self._copy, cut)
        expected = self._traced.macs - _saved_macs(cut, self._copy, [kept])
        try:
            masked = self._masked(members, removed)
            dresser.dress([kept])
            after = trace(self._copy, self._inputs)
        except Exception as error:  # whatever a foreign network does when it is cut
            raise _Refused(f"the network breaks without some of its channels ({first_line(error)})") from error
        finally:
            dresser.dress([everything])
        if [o.shape for o in after.outputs] != [o.shape for o in self._traced.outputs]:
            raise _Refused("it changes the shape of the network's output")
        if after.sizes.shape != self._traced.sizes.shape or after.live.shape != self._traced.live.shape:
            raise _Refused("the network runs differently without some of its channels")
        if after.macs != expected:
            raise _Refused(f"its cost is not what its layers say ({after.macs} MACs, not {expected})")
        mixes = any(isinstance(self._copy.get_submodule(m.layer), nn.LayerNorm) for m in members if m.kind == "layer")
        if not mixes and not all(map(_close, after.outputs, masked)):
            raise _Refused("removing its channels is not the same as silencing them")
        return np.asarray((self._traced.sizes - after.sizes) / len(removed), np.float64)

    def _masked(self, members: list[_Member], removed: Ints) -> list[Tensor]:
        """What the original computes when the consumers do not listen to the removed channels."""
        readers: list[tuple[Any, _Member]] = [
            (self._copy.get_submodule(m.layer), m) for m in members if m.side == "input"
        ]
        whole = [(module, module.weight) for module, _ in readers]
        try:
            for module, m in readers:
                silenced = module.weight.detach().clone()
                silenced[:, m.positions[np.isin(m.channels, removed)]] = 0
                module._parameters["weight"] = nn.Parameter(silenced, requires_grad=False)
            with torch.no_grad():
                return [t for t in tree_leaves(nested.call(self._copy, self._inputs)) if isinstance(t, Tensor)]
        finally:
            for module, weight in whole:
                module._parameters["weight"] = weight


def _noisy(leaf: Tensor, generator: torch.Generator) -> Tensor:
    if not leaf.is_floating_point():
        return leaf
    noise = torch.randn(leaf.shape, generator=generator).to(leaf.device)
    return (leaf + noise).clone(memory_format=torch.contiguous_format)


def _enliven(model: nn.Module) -> None:
    """Give parameters that are all zero some noise: behind a branch that gives nothing every mistake is hidden."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.numel() and not bool(parameter.any()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _saved_macs(layers: Sequence[Layer], model: nn.Module, kept: Kept) -> int:
    saved = 0
    for layer in layers:
        if layer.positions and (layer.output or layer.input):
            weight = model.get_submodule(layer.name).weight
            assert isinstance(weight, Tensor)
            shape = weight.shape
            outputs = len(layer.output.kept(kept)) if layer.output else shape[0]
            inputs = len(layer.input.kept(kept)) if layer.input else shape[1]
            taps = int(np.prod(shape[2:]))
            saved += layer.positions * taps * (shape[0] * shape[1] - outputs * inputs)
    return saved


def _close(first: Tensor, second: Tensor) -> bool:
    scale = float(second.abs().max()) or 1.0
    return bool(torch.allclose(first, second, rtol=1e-3, atol=1e-3 * scale))


def consumers(graph: Graph, site: int) -> Iterator[Layer]:
    """The layers whose inputs hang on a site."""
    for layer in graph.layers:
        if layer.input is not None and bool((layer.input.site == site).any()):
            yield layer


logging.getLogger("torch_pruning").setLevel(logging.ERROR)
