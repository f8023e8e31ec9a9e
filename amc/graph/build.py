"""The channel groups of a network, and why some of its channels cannot be removed.

`amc.graph.flow` says which channels hang together. What it says is not believed but tried
(`amc.graph.verify`): channels become
a site only when a copy without some of them runs, keeps its output's shape, costs exactly what was predicted, and
computes what the original computes when nothing listens to those channels.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.errors import ModelError, first_line
from amc.graph.attention import adapted, without_fast_path
from amc.graph.attributes import ShapeAttributes
from amc.graph.channels import (
    CONVS,
    TRANSPOSED,
    ActivationProduct,
    Axis,
    BareParameter,
    Ints,
    Layer,
    LayerKind,
    ModuleKind,
    Statistic,
    kind_of,
)
from amc.graph.elements import along, line_of
from amc.graph.flow import Flow, Parts, Weights
from amc.graph.sites import Graph, Refusal, Site, SiteFeatures, consumers
from amc.graph.trace import trace
from amc.graph.verify import Trial
from amc.task import nested
from amc.task.nested import Nested

__all__ = ["Graph", "Refusal", "Site", "build_graph", "consumers"]


_Find = Callable[[Ints], Axis | None]
_PATIENCE = 8  # trials that may fail among groups of one kind; those that are left then are refused as the last was


@dataclass(eq=False)
class _Group:
    """Channels that are treated alike everywhere: a site, if the trial is passed."""

    name: str
    roots: Ints
    attributes: list[Layer] = field(default_factory=list)
    reason: str | None = None


def build_graph(model: nn.Module, example: Nested) -> Graph:
    """The channel groups of ``model``, each tried on a copy. ``example`` is one sample ``[1, ...]``.

    Raises ModelError when the network fails on its example, or has nothing to prune.
    """
    # one memory layout for all: another would run other operators
    example = nested.mapped(lambda leaf: leaf.clone(memory_format=torch.contiguous_format), example)
    if model.training:
        raise ModelError("the network is in training mode: call .eval() first.")
    builder = _Builder(model, example)
    groups = builder.accepted()
    if builder.tie_squares(groups):
        groups = builder.accepted()
    refusals = tuple(builder.refusals(groups))
    if not groups:
        why = "; ".join(f"{r.name}: {r.reason}" for r in refusals[:3]) or "no convolution or linear layer was found"
        raise ModelError(f"there is nothing to prune in this network ({why}).")
    return builder.graph(groups, refusals)


class _Builder:
    """From the ids of one forward pass to groups, layers and costs."""

    def __init__(self, model: nn.Module, example: Nested) -> None:
        self._model = model
        self._flow = flow = Flow(model)
        try:
            with (
                torch.no_grad(),
                without_fast_path(),
            ):  # what a network keeps from its first pass on is there for all that follow
                nested.call(model, example)
            with adapted(model), flow.watching():
                self._trace = trace(model, example, flow)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"the network fails on its example input: {first_line(error)}") from error
        if _not_run(model, flow.weights):
            _rehearse(flow, model, example)
        self._patience = _PATIENCE
        self._freeze_shared()
        self._trial = Trial(model, example, self._trace)
        self._settle()

    def _settle(self) -> None:
        self._roots = _settle(self._flow)
        if _tie_unused(self._flow, self._roots):
            self._roots = _settle(self._flow)
        self._frozen = self._flow.ids.frozen(self._roots)
        self._tensor_axes = dict(self._parameter_axes())
        self._groups = self._find_groups()
        self._shape_attributes = ShapeAttributes(self._model, self._flow, self._roots)
        self._variants: dict[int, list[list[Layer]]] = {}

    # Groups

    def _freeze_shared(self) -> None:
        """A tensor that two layers hold is cut for one of them only."""
        owners = Counter(id(p) for module in self._model.modules() for p in module.parameters(recurse=False))
        for layer in self._flow.weights.values():
            module = self._model.get_submodule(layer.module)
            if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
                for ids in (layer.output, layer.input):
                    if ids is not None:
                        self._flow.ids.freeze(ids, f"{layer.name} shares its weights with another layer")

    def _parameter_axes(self) -> Iterator[tuple[str, tuple[int, Ints]]]:
        """For every parameter that was followed by its elements: the dimension along which its channels lie."""
        for name, ids in self._flow.parameters.items():
            if name in self._flow.weights:
                for root in np.unique(self._roots[ids.numpy()]).tolist():
                    self._frozen.setdefault(root, f"{name} is used in several ways")
                continue
            roots = self._roots[ids.numpy()]
            dims = along(roots)
            if len(dims) == 1:
                yield name, (dims[0], line_of(roots, dims[0]))
            elif dims:
                for root in np.unique(roots).tolist():
                    self._frozen.setdefault(root, f"the parameter {name} holds its channels in no regular way")

    def _find_groups(self) -> list[_Group]:
        """Roots with one signature: how often they are found along each axis of the network."""
        axes: list[tuple[Ints, str]] = []
        for layer in self._flow.weights.values():
            if layer.refused is None:
                axes.append((self._roots[layer.output.numpy()], "output"))
            if layer.input is not None:
                axes.append((self._roots[layer.input.numpy()], "input"))
        axes += [(roots, "parameter") for _, roots in self._tensor_axes.values()]
        axes += [(self._roots[p.ids.numpy()], "product") for p in self._flow.products]
        signatures: dict[int, list[tuple[int, int]]] = defaultdict(list)
        roles: dict[int, set[str]] = defaultdict(set)
        for number, (roots, role) in enumerate(axes):
            for root, count in zip(*np.unique(roots, return_counts=True), strict=True):
                signatures[int(root)].append((number, int(count)))
                roles[int(root)].add(role)
        alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for layer in self._flow.weights.values():
            for root in dict.fromkeys(self._roots[layer.output.numpy()].tolist()):
                key = tuple(signatures[root])
                if root not in self._frozen and "input" in roles[root] and root not in alike[key]:
                    alike[key].append(root)
        groups, names = [], Counter[str]()
        where = {
            r: x.name for x in reversed(self._flow.weights.values()) for r in self._roots[x.output.numpy()].tolist()
        }
        for members in filter(None, alike.values()):
            name = where[members[0]]
            names[name] += 1
            groups.append(_Group(name if names[name] == 1 else f"{name}:{names[name]}", np.array(members)))
        return groups

    def accepted(self) -> list[_Group]:
        """The groups that pass the trial, tried together as far as they do."""
        candidates = []
        for group in self._groups:
            if len(group.roots) < 2:
                group.reason = self._flow.ids.why_tied(self._roots, int(group.roots[0])) or "it has one channel only"
            else:
                candidates.append(group)
        patterns: dict[str, list[_Group]] = defaultdict(list)
        for group in candidates:
            patterns[re.sub(r"\d+", "*", group.name)].append(group)
        found = self._pass([], candidates)
        if found is None:
            found = []
            for alike in patterns.values():
                self._patience = _PATIENCE
                found = self._grow(found, alike)
        order = {id(g): i for i, g in enumerate(candidates)}
        return sorted(found, key=lambda g: order[id(g)])

    def tie_squares(self, found: Sequence[_Group]) -> bool:
        """Where heads failed, tie them with the stream that they read, if both are as wide: some attention wants that.

        Gives whether anything was tied; then the groups are others.
        """
        offered = set(np.concatenate([g.roots for g in found]).tolist()) if found else set()
        failed = {int(r): g for g in self._groups if g.reason and len(g.roots) > 1 for r in g.roots}
        tied = False
        for parts in self._flow.parts:
            heads = failed.get(int(self._roots[parts.ids.reshape(-1)[0]]))
            inside = [w for n, w in self._flow.weights.items() if parts.module and n.startswith(f"{parts.module}.")]
            readers = [w for w in inside if heads and w.input is not None and self._hangs(w.input, heads)]
            makers = [w for w in inside if heads and w.input is not None and self._hangs(w.output, heads)]
            for reader, maker in ((r, m) for r in readers for m in makers):
                stream = self._roots[maker.input.numpy()]  # type: ignore[union-attr]
                if len(stream) == len(reader.input) and not set(stream.tolist()) & offered:  # type: ignore[arg-type]
                    self._flow.ids.tie(maker.input, reader.input, "attention is as wide as its input")  # type: ignore[arg-type]
                    tied = True
        if tied:
            self._settle()
        return tied

    def _hangs(self, ids: Tensor, group: _Group) -> bool:
        return bool(np.isin(self._roots[ids.numpy()], group.roots).any())

    def _grow(self, found: list[_Group], more: list[_Group]) -> list[_Group]:
        """``found`` and what can be added of ``more``, by halves."""
        passed = self._pass(found, more)
        if passed is not None:
            return passed
        self._patience -= 1
        if len(more) == 1 or self._patience <= 0:
            return found
        if len(more) > 2:
            ends = [self._pass(found, [g]) is None for g in (more[0], more[-1])]
            if all(ends) and _gist(more[0].reason) == _gist(more[-1].reason):
                for group in more:
                    group.reason = more[0].reason
                return found
        middle = len(more) // 2
        return self._grow(self._grow(found, more[:middle]), more[middle:])

    def _pass(self, found: list[_Group], more: list[_Group]) -> list[_Group] | None:
        """Both together, if they pass; the reason stays with ``more``."""
        variants = [self._attributes(g) for g in more]
        ways: list[list[list[Layer]]] = []
        for take in (1, 2, 0, 3, 4):
            chosen = [variant[take] for variant in variants]
            if chosen not in ways and (take == 0 or any(chosen)):
                ways.append(chosen)
        plain: str | None = None
        for chosen in ways:
            for group, attributes in zip(more, chosen, strict=True):
                group.attributes = attributes
            reason = self._trial(self.graph([*found, *more], ()))
            for group in more:
                group.reason = reason
            if reason is None:
                return [*found, *more]
            plain = plain if any(chosen) else reason
        for group in more:
            group.attributes, group.reason = [], plain
        return None

    def _attributes(self, group: _Group) -> list[list[Layer]]:
        """See `amc.graph.attributes.ShapeAttributes.following`; found once for a group."""
        if id(group) not in self._variants:
            self._variants[id(group)] = self._shape_attributes.following(group.roots)
        return self._variants[id(group)]

    # Layers and costs

    def graph(self, groups: Sequence[_Group], refusals: tuple[Refusal, ...]) -> Graph:
        """The graph whose sites are these groups."""
        site, channel = np.full(self._flow.ids.count, -1), np.full(self._flow.ids.count, -1)
        for number, group in enumerate(groups):
            site[group.roots] = number
            channel[group.roots] = np.arange(len(group.roots))

        def axis(roots: Ints) -> Axis | None:
            return Axis(site[roots], channel[roots]) if (site[roots] >= 0).any() else None

        layers = list(self._layers(axis))
        for number, group in enumerate(groups):
            for x in group.attributes:
                assert x.output is not None
                layers.append(Layer(x.name, x.kind, Axis(np.where(x.output.site < 0, -1, number), x.output.channel)))
        statistics = []
        for norm in self._flow.norms:
            found = axis(self._roots[norm.ids.numpy()])
            if found is not None:
                statistics.append(Statistic(norm.number, norm.dim, found))
        sites = tuple(self._site(number, group, layers) for number, group in enumerate(groups))
        growth = self._growth(site, [len(g.roots) for g in groups])
        return Graph(sites, tuple(layers), refusals, self._trace, growth, tuple(statistics))

    def _layers(self, axis: _Find) -> Iterator[Layer]:
        """Modules first, in forward order; then bare parameters and products."""
        tensors = self._followed()
        yield from self._modules(axis, tensors)
        for own in self._flow.weights.values():
            if own.bare:
                yield self._weighty(own, BareParameter(int(own.transposed)), axis)
        for found in tensors.values():
            for name, dim, line in found:
                if (cut := axis(line)) is not None:
                    yield Layer(name, BareParameter(dim), cut)
        for number, product in enumerate(self._flow.products):
            if (cut := axis(self._roots[product.ids.numpy()])) is not None:
                each = product.macs // len(cut)
                yield Layer(f"product {number}", ActivationProduct(), cut, positions=each, macs=product.macs)

    def _followed(self) -> dict[str, list[tuple[str, int, Ints]]]:
        """By module the tensors whose elements were followed: name, dimension, roots along it."""
        found = defaultdict(list)
        for name, (dim, line) in self._tensor_axes.items():
            found[name.rpartition(".")[0]].append((name, dim, line))
        for name, ids in self._flow.plain_norms.items():
            if kind_of(self._model.get_submodule(name)) is ModuleKind.NORM:
                found[name].append((name, 0, self._roots[ids.numpy()]))
        return found

    def _modules(self, axis: _Find, tensors: dict[str, list[tuple[str, int, Ints]]]) -> Iterator[Layer]:
        weights = {name: own for name, own in self._flow.weights.items() if not own.bare}
        followed = (ModuleKind.NORM, ModuleKind.PRELU)
        norms = [name for name in tensors if kind_of(self._model.get_submodule(name)) in followed]
        for name in dict.fromkeys([*self._trace.layers, *norms, *weights]):
            kind = kind_of(self._model.get_submodule(name))
            if name in weights:
                yield self._weighty(weights[name], kind, axis)
            elif kind in followed:
                line = next((line for _, dim, line in tensors.pop(name, []) if dim == 0), None)
                by_group = self._flow.group_norms.get(name, False)
                yield Layer(name, kind, None if line is None else axis(line), by_group=by_group)
            else:
                yield Layer(name, ModuleKind.OTHER, None)

    def _weighty(self, own: Weights, kind: LayerKind, axis: _Find) -> Layer:
        output = None if own.refused else axis(self._roots[own.output.numpy()])
        inputs = None if own.input is None else axis(self._roots[own.input.numpy()])
        holder, _, key = own.name.rpartition(".")
        weight = (
            getattr(self._model.get_submodule(holder), key) if own.bare else self._model.get_submodule(own.name).weight
        )
        assert isinstance(weight, Tensor)
        macs, taps = own.positions * weight.numel(), weight[0].numel() if own.by_group else weight[0, 0].numel()
        alone = sum(other.norm == own.norm for other in self._flow.weights.values()) == 1
        norm = own.norm if own.norm and alone else None
        return Layer(own.name, kind, output, inputs, own.by_group, own.positions, macs, taps, norm)

    def _site(self, number: int, group: _Group, layers: Sequence[Layer]) -> Site:
        def hangs(axis: Axis | None) -> bool:
            return axis is not None and bool((axis.site == number).any())

        weighty = [x for x in layers if x.has_tensors]
        cut = [x for x in weighty if hangs(x.output)]
        readers = tuple(x.name for x in weighty if hangs(x.input))
        features = self._features(group, float(sum(x.macs for x in cut)))
        return Site(group.name, len(group.roots), tuple(x.name for x in cut), readers, features)

    def _features(self, group: _Group, macs: float) -> SiteFeatures:
        own = self._flow.weights[group.name.partition(":")[0]]
        module, call = self._model.get_submodule(own.module), self._trace.layers.get(own.name)
        outputs = float(len(own.output))
        if call is None:  # a function uses its weights
            return SiteFeatures(outputs, 0.0, 1.0, 1.0, 1.0, 1.0, macs)
        if not isinstance(module, (*CONVS, *TRANSPOSED)):
            return SiteFeatures(outputs, float(call.input[-1]), 1.0, 1.0, 1.0, 1.0, macs)
        height, width = [float(v) for v in (*call.input[1:], 1, 1)[:2]]
        stride, kernel = float(module.stride[0]), float(module.kernel_size[0])
        return SiteFeatures(outputs, float(call.input[0]), height, width, stride, kernel, macs)

    def _growth(self, site: Ints, channels: Sequence[int]) -> NDArray[np.float64]:
        """``[T, S]``, counted in the planes."""
        growth = np.zeros((len(self._trace.sizes), len(channels)))
        for index, plane in self._flow.activations.items():
            found = site[self._roots[plane.numpy().reshape(-1)]]
            found = found[found >= 0]
            if len(found):
                each = self._trace.sizes[index] / plane.numel()
                growth[index] = each * np.bincount(found, minlength=len(channels)) / np.array(channels)
        return growth

    # Refusals

    def refusals(self, groups: Sequence[_Group]) -> Iterator[Refusal]:
        """Every layer none of whose channels became a site, and why."""
        offered = set(np.concatenate([g.roots for g in groups]).tolist()) if groups else set()
        reasons = {int(r): g.reason for g in self._groups if g.reason for r in g.roots}
        seen: set[int] = set()
        for layer in self._flow.weights.values():
            roots = set(self._roots[layer.output.numpy()].tolist())
            reason = "it has one channel only" if len(layer.output) == 1 else layer.refused
            if roots & offered or (layer.by_group and layer.refused is None and roots & seen):
                continue
            if roots <= seen and layer.refused is None:
                continue
            seen |= roots
            yield Refusal(layer.name, len(layer.output), reason or self._reason(roots, reasons))

    def _reason(self, roots: set[int], reasons: dict[int, str]) -> str:
        for root in sorted(roots):
            if root in reasons:
                return reasons[root]
        for root in sorted(roots):
            if root in self._frozen:
                return self._frozen[root]
        return "no layer reads it"


def _not_run(model: nn.Module, ran: Container[str]) -> list[str]:
    """Layers that have not run, as auxiliary classifiers do in training only."""
    kinds = (*CONVS, *TRANSPOSED, nn.Linear)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and name not in ran]


def _rehearse(flow: Flow, model: nn.Module, example: Nested) -> None:
    """A pass in training mode, so that the layers that run only then follow too."""
    flow.rehearsing = True
    twice = nested.mapped(lambda leaf: leaf.repeat(2, *[1] * (leaf.ndim - 1)), example)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    try:
        with contextlib.suppress(Exception), torch.random.fork_rng(), adapted(model), flow.watching():
            trace(model.train(), twice, flow)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _gist(reason: str | None) -> str:
    """A reason without its numbers."""
    return re.sub(r"\d+", "", reason or "")


def _settle(flow: Flow) -> Ints:
    """Tie until every dimension that became several parts changes along one of them only; the roots then."""
    while True:
        roots = flow.ids.roots()
        open_parts = [(p, dims) for p in flow.parts if len(dims := along(roots[p.ids.numpy()])) > 1]
        if not open_parts:
            return roots
        for parts, dims in open_parts:
            _tie(flow, parts, dims)


def _tie_unused(flow: Flow, roots: Ints) -> bool:
    """Tie elements of parameters that nothing has read to their channel; gives whether there are any.

    A table of positions may have more rows than the example has positions.
    """
    members = np.bincount(roots, minlength=flow.ids.count)
    tied = False
    for ids in flow.parameters.values():
        own = roots[ids.numpy()]
        for dim in along(own) if len(along(own)) > 1 else []:
            lines = np.moveaxis(own, dim, 0).reshape(own.shape[dim], -1)
            used = members[lines] > 1
            if used.all() or not used.any(1).all():
                continue
            line = np.take_along_axis(lines, used.argmax(1)[:, None], 1)
            if bool(((lines == line) | ~used).all()):
                wide = torch.from_numpy(np.broadcast_to(line, lines.shape)[~used])
                flow.ids.tie(wide, torch.from_numpy(lines[~used]))
                tied = True
                break
    return tied


def _tie(flow: Flow, parts: Parts, dims: list[int]) -> None:
    keep = max(dims, key=lambda d: parts.ids.shape[d])
    first = parts.ids
    for dim in dims:
        if dim != keep:
            first = first.narrow(dim, 0, 1)
    flow.ids.tie(first, parts.ids, "it is cut into parts that must stay equal")
