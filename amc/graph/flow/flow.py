"""One forward pass, in which every channel is followed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc.graph.elements import ElementIds, core, varying
from amc.graph.flow.planes import Planes
from amc.graph.flow.records import STATISTICS, NormStatistic, Parts, Product, Vector, View, WeightedLayer
from amc.graph.flow.rules import RULES
from amc.graph.flow.running import OwnTensors, RunningModule
from amc.graph.flow.weighted import WeightedLayers
from amc.graph.macs import operator_macs

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Flow:
    """Watches a forward pass (see `amc.graph.trace.trace`) and applies the rule of every operator that runs.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> from amc.graph.trace import trace
    >>> flow = Flow(model)
    >>> with flow.watching():
    ...     _ = trace(model, torch.ones(1, 3), flow)
    >>> first, second = flow.layers.by_name.values()
    >>> torch.equal(second.input, first.output)
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self.ids = ElementIds()
        self.running = RunningModule(model)
        self.own = OwnTensors(model)
        self.layers = WeightedLayers(self.ids, self.own, self.running)
        self.planes = Planes(self.ids, self.own, self.layers)
        self.products: list[Product] = []
        self.parts: list[Parts] = []
        self.views: list[View] = []
        self.statistics: list[NormStatistic] = []
        self.plain_norms: dict[str, Vector] = {}
        """Normalisations over channels without parameters, by module."""
        self.group_norms: dict[str, bool] = {}
        """Group normalisations by module, and whether whole groups are removed."""
        self.activations: dict[int, Tensor] = {}
        """The plane of every activation that has one, by its number in the trace."""
        self._number_by_memory: dict[int, int] = {}
        """The numbers of activations."""
        self._statistic = -1
        self._counts = True

    # What a trace tells

    @contextmanager
    def watching(self, counts: bool = True) -> Iterator[None]:
        """Within this context a pass is followed. Without ``counts`` its costs and activations are ignored.

        This is for a second pass, in training mode, whose extra layers belong to no cost.
        """
        self._counts = counts
        with self.running.watched():
            yield

    def made(self, index: int, tensor: Tensor) -> None:
        """Note that activation ``index`` of the trace is this tensor."""
        if not self._counts:
            return
        self._number_by_memory[tensor.untyped_storage()._cdata] = index
        plane = self.planes.of(tensor)
        if plane is not None:
            self.activations[index] = core(plane)

    def outputs(self, tensors: Sequence[Tensor]) -> None:
        """Freeze the network's outputs."""
        for tensor in tensors:
            plane = self.planes.of(tensor)
            if plane is not None:
                self.ids.freeze(core(plane), "it is the network's output")

    def step(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Apply the rule of an operator that has run."""
        name = str(func.overloadpacket).removeprefix("aten.")
        self._statistic += name in STATISTICS
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if self._counts:
            self.layers.note_readers(args)
        if self.planes.only_views(args, outs):
            return
        if isinstance(self.running.module, _RECURRENT):
            self._freeze_recurrent(args, kwargs)
            return
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = RULES["pointwise"]
        if rule is not None:
            found = rule(self, name, func, args, kwargs, out)
        else:
            self._freeze_unknown(name, args, kwargs)
            found = None
        planes = found if isinstance(found, list | tuple) else [found]
        for tensor, plane in zip(outs, planes, strict=False):
            self.planes.store(tensor, plane)

    def _freeze_unknown(self, name: str, args: Any, kwargs: Any) -> None:
        for tensor in tree_leaves((args, kwargs)):
            own = self.planes.parameter_shown(tensor)
            if own is not None and self.planes.keep_constant(own):
                continue
            plane = self.planes.of(tensor)
            if plane is not None:
                self.ids.freeze(core(plane), f"it runs through {name.strip('_')}, which is not understood")

    def _freeze_recurrent(self, args: Any, kwargs: Any) -> None:
        kind, name = type(self.running.module).__name__, self.running.name or "the network"
        for tensor in tree_leaves((args, kwargs)):
            plane = self.planes.of_input(tensor) if isinstance(tensor, Tensor) else None
            if plane is not None:
                self.ids.freeze(core(plane), f"{name}, a recurrent layer ({kind}), reads it")

    # What the rules record

    def cut_into_equal_parts(self, plane: Tensor, dim: int, parts: int) -> None:
        """Record that a dimension is cut into parts of equal length: they must stay equal when channels are removed."""
        if dim in varying(plane):
            small = core(plane).movedim(dim, 0)
            self.parts.append(Parts(self.running.name, small.reshape(parts, -1, *small.shape[1:]).squeeze()))

    def write(self, target: Tensor, plane: Tensor) -> bool:
        """Record that these ids are written into a part of a tensor. False where that cannot be followed."""
        if not self.planes.write(target, plane):
            return False
        number = self._number_by_memory.get(target.untyped_storage()._cdata)
        whole = self.planes.written(target)
        if self._counts and number is not None and whole is not None:
            self.activations[number] = whole
        return True

    def count_layer(self, layer: WeightedLayer, weight: Tensor, macs: int) -> None:
        """Record that a layer's weights were applied with so many MACs."""
        if self._counts:
            layer.positions += macs // weight.numel()

    def count_product(self, func: Any, args: Any, kwargs: Any, out: Any, ids: Tensor) -> None:
        """Record that the MACs of this operator are in proportion to the length of ``ids``."""
        if self._counts:
            self.products.append(Product(operator_macs(func, args, kwargs, out) or 0, ids.reshape(-1)))

    def take_statistic(self, dim: int, ids: Vector) -> None:
        """Record that this operator takes a statistic over channels."""
        if self._counts:
            self.statistics.append(NormStatistic(self._statistic, dim, ids))
