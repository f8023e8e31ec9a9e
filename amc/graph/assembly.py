"""From groups of channels to a graph: sites, the axes of all layers, and how activations grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

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
from amc.graph.flow import Flow, WeightedLayer
from amc.graph.grouping import Group, Grouping
from amc.graph.sites import Graph, Refusal, Site, SiteFeatures
from amc.graph.trace import Trace

Attributes = Mapping[Group, Sequence[Layer]]
"""Groups, and the attributes of modules that follow each (`amc.graph.attributes`)."""
_FOLLOWED = (ModuleKind.NORM, ModuleKind.PRELU)


class GraphAssembler:
    """Makes the graph of any selection of a network's groups."""

    def __init__(self, model: nn.Module, flow: Flow, traced: Trace, grouping: Grouping) -> None:
        self._model, self._flow, self._trace, self._grouping = model, flow, traced, grouping
        vectors = self._vectors()
        kinds = {name: kind_of(model.get_submodule(name)) for name in vectors}
        self._norms = {
            name: next((line for _, dim, line in found if dim == 0), None)
            for name, found in vectors.items()
            if kinds[name] in _FOLLOWED
        }
        self._bare = [x for name, found in vectors.items() if kinds[name] not in _FOLLOWED for x in found]

    def _vectors(self) -> dict[str, list[tuple[str, int, Ints]]]:
        """By module the tensors that were followed element by element: name, dimension, roots along it."""
        found = defaultdict(list)
        for name, (dim, line) in self._grouping.parameters.items():
            found[name.rpartition(".")[0]].append((name, dim, line))
        for name, ids in self._flow.plain_norms.items():
            if kind_of(self._model.get_submodule(name)) is ModuleKind.NORM:
                found[name].append((name, 0, self._grouping.of(ids)))
        return found

    def graph(self, chosen: Attributes, refusals: tuple[Refusal, ...] = ()) -> Graph:
        """The graph whose sites are the ``chosen`` groups."""
        axes = _SiteAxes(self._flow.ids.count, list(chosen))
        layers = list(self._layers(axes))
        for number, attributes in enumerate(chosen.values()):
            for x in attributes:
                assert x.output is not None
                layers.append(Layer(x.name, x.kind, Axis(np.where(x.output.site < 0, -1, number), x.output.channel)))
        statistics = []
        for norm in self._flow.statistics:
            found = axes.of(self._grouping.of(norm.ids))
            if found is not None:
                statistics.append(Statistic(norm.number, norm.dim, found))
        sites = tuple(self._site(number, group, layers) for number, group in enumerate(chosen))
        growth = self._growth(axes.site, [len(g.roots) for g in chosen])
        return Graph(sites, tuple(layers), refusals, self._trace, growth, tuple(statistics))

    def _layers(self, axes: _SiteAxes) -> Iterator[Layer]:
        """Modules first, in forward order; then bare parameters and products."""
        yield from self._modules(axes)
        for own in self._flow.layers.by_name.values():
            if own.bare:
                yield self._weighted(own, BareParameter(int(own.transposed)), axes)
        for name, dim, line in self._bare:
            if (cut := axes.of(line)) is not None:
                yield Layer(name, BareParameter(dim), cut)
        for number, product in enumerate(self._flow.products):
            if (cut := axes.of(self._grouping.of(product.ids))) is not None:
                each = product.macs // len(cut)
                yield Layer(f"product {number}", ActivationProduct(), cut, positions=each, macs=product.macs)

    def _modules(self, axes: _SiteAxes) -> Iterator[Layer]:
        weighted = {name: own for name, own in self._flow.layers.by_name.items() if not own.bare}
        for name in dict.fromkeys([*self._trace.layers, *self._norms, *weighted]):
            kind = kind_of(self._model.get_submodule(name))
            if name in weighted:
                yield self._weighted(weighted[name], kind, axes)
            elif kind in _FOLLOWED:
                line = self._norms.get(name)
                by_group = self._flow.group_norms.get(name, False)
                yield Layer(name, kind, None if line is None else axes.of(line), by_group=by_group)
            else:
                yield Layer(name, ModuleKind.OTHER, None)

    def _weighted(self, own: WeightedLayer, kind: LayerKind, axes: _SiteAxes) -> Layer:
        output = None if own.refused else axes.of(self._grouping.of(own.output))
        inputs = None if own.input is None else axes.of(self._grouping.of(own.input))
        weight = self._weight(own)
        macs, taps = own.positions * weight.numel(), weight[0].numel() if own.by_group else weight[0, 0].numel()
        alone = sum(other.norm == own.norm for other in self._flow.layers.by_name.values()) == 1
        norm = own.norm if own.norm and alone else None
        return Layer(own.name, kind, output, inputs, own.by_group, own.positions, macs, taps, norm)

    def _weight(self, own: WeightedLayer) -> Tensor:
        name, key = (own.module, own.name.rpartition(".")[2]) if own.bare else (own.name, "weight")
        weight = getattr(self._model.get_submodule(name), key)
        assert isinstance(weight, Tensor)
        return weight

    def _site(self, number: int, group: Group, layers: Sequence[Layer]) -> Site:
        tensors = [x for x in layers if x.has_tensors]
        cut = [x for x in tensors if _follows(x.output, number)]
        readers = tuple(x.name for x in tensors if _follows(x.input, number))
        features = self._features(group, float(sum(x.macs for x in cut)))
        return Site(group.name, len(group.roots), tuple(x.name for x in cut), readers, features)

    def _features(self, group: Group, macs: float) -> SiteFeatures:
        own = self._flow.layers.by_name[group.name.partition(":")[0]]
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
        """``[T, S]``, counted in the planes of activations."""
        growth = np.zeros((len(self._trace.sizes), len(channels)))
        for index, plane in self._flow.activations.items():
            found = site[self._grouping.of(plane.reshape(-1))]
            found = found[found >= 0]
            if len(found):
                each = self._trace.sizes[index] / plane.numel()
                growth[index] = each * np.bincount(found, minlength=len(channels)) / np.array(channels)
        return growth


class _SiteAxes:
    """For every id the site and the channel that it belongs to; -1 where none."""

    def __init__(self, count: int, groups: Sequence[Group]) -> None:
        self.site, self._channel = np.full(count, -1), np.full(count, -1)
        for number, group in enumerate(groups):
            self.site[group.roots] = number
            self._channel[group.roots] = np.arange(len(group.roots))

    def of(self, roots: Ints) -> Axis | None:
        """The axis along which these roots lie; None where no site has any of them."""
        return Axis(self.site[roots], self._channel[roots]) if (self.site[roots] >= 0).any() else None


def _follows(axis: Axis | None, site: int) -> bool:
    return axis is not None and bool((axis.site == site).any())
