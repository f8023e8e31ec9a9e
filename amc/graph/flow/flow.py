"""One forward pass, in which every channel is followed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

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
        self.assumed: list[tuple[Tensor, str]] = []
        """Ids that unknown operators are assumed to keep apart, and what is told where they do not."""
        self.plain_norms: dict[str, Vector] = {}
        """Normalisations over channels without parameters, by module."""
        self.group_norms: dict[str, bool] = {}
        """Group normalisations by module, and whether whole groups are removed."""
        self.activations: dict[int, Tensor] = {}
        """The plane of every activation that has one, by its number in the trace."""
        self._number_by_memory: dict[int, int] = {}
        """The numbers of activations."""
        self._origins: Any = WeakTensorKeyDictionary()
        self._choices: Any = WeakTensorKeyDictionary()
        """Integers of the input, and what is computed from them."""
        self._has_begun = False
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
        if not self._has_begun and not tensor.is_floating_point():
            self._choices[tensor] = True
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
        self._has_begun = True
        self._statistic += name in STATISTICS
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if self._counts:
            self.layers.note_readers(args)
        self._note_origin(args, kwargs, outs)
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
            found = self._apart(name, args, kwargs, outs)
            if found is None:
                self._freeze_unknown(name, args, kwargs)
        planes = found if isinstance(found, list | tuple) else [found]
        for tensor, plane in zip(outs, planes, strict=False):
            self.planes.store(tensor, plane)

    def origin(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a tensor shows, or was computed from, by itself or with activations."""
        own = self.own.find(tensor)
        found: str | None = own[0] if own is not None else self._origins.get(tensor)
        return found

    def _note_origin(self, args: Any, kwargs: Any, outs: Sequence[Tensor]) -> None:
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        owned = [own[0] for t in read if t.ndim > 1 and (own := self.own.find(t)) is not None]
        found = [*owned, *(self._origins[t] for t in read if t in self._origins)]
        for tensor in outs if found else ():
            self._origins[tensor] = found[0]
        if any(t in self._choices for t in read):
            self._choices.update((t, True) for t in outs if not t.is_floating_point())

    def is_chosen_by_input(self, index: Any) -> bool:
        """Whether these indices are the input's, or computed from it."""
        return isinstance(index, Tensor) and index in self._choices

    def _apart(self, name: str, args: Any, kwargs: Any, outs: Sequence[Tensor]) -> list[Tensor] | None:
        """The planes of an unknown operator's outputs, if it may work on the positions of every channel by itself.

        That is assumed where one operand alone has channels, and every output is as long along them; the trial decides.
        """
        followed = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and self.planes.of(t) is not None]
        plane = self.planes.of(followed[0]) if len(followed) == 1 else None
        if plane is None or len(varying(plane)) != 1 or self.planes.parameter_shown(followed[0]) is not None:
            return None
        (dim,) = varying(plane)
        if not outs or any(t.ndim != plane.ndim or t.shape[dim] != plane.shape[dim] for t in outs):
            return None
        self.assumed.append((core(plane), _not_understood(name)))
        return [core(plane).expand(t.shape) for t in outs]

    def _freeze_unknown(self, name: str, args: Any, kwargs: Any) -> None:
        for tensor in tree_leaves((args, kwargs)):
            own = self.planes.parameter_shown(tensor)
            if own is not None and self.planes.keep_constant(own):
                continue
            plane = self.planes.of(tensor)
            if plane is not None:
                self.ids.freeze(core(plane), _not_understood(name))

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


_IN_PYTHON = {
    "_cdist_forward": "torch.cdist", "_euclidean_dist": "torch.cdist", "_trilinear": "torch.nn.functional.bilinear",
    "_linalg_solve_ex": "torch.linalg.solve", "linalg_inv_ex": "torch.linalg.inv", "_linalg_svd": "torch.linalg.svd",
    "affine_grid_generator": "torch.nn.functional.affine_grid", "index_put": "an assignment to x[indices]",
    "index_put_": "an assignment to x[indices]", "_index_put_impl_": "an assignment to x[indices]",
    "_fft_r2c": "torch.fft", "_fft_c2c": "torch.fft", "_fft_c2r": "torch.fft",
}  # fmt: skip
"""Names of ATen operators by which nobody calls them."""


def _not_understood(name: str) -> str:
    return f"it runs through {_IN_PYTHON.get(name, name.strip('_'))}, which is not understood"
