"""What is known of a network's channels while one forward pass runs."""

# mypy: disable-error-code=no-untyped-call
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from amc.graph.channels import BATCH_NORMS, CONVS, TRANSPOSED
from amc.graph.elements import FIXED, ElementIds, core, tidy, varying
from amc.graph.flow.rules import RULES
from amc.graph.macs import operator_macs

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_MOST_IDS = 1 << 22  # elements of a parameter that is followed element by element
STATISTICS = frozenset(
    ("native_layer_norm", "_fused_rms_norm", "native_group_norm", "sum", "mean", "amax", "amin", "var", "std",
     "linalg_vector_norm", "var_mean", "max", "min", "logsumexp", "prod", "median", "nanmedian", "nansum", "std_mean",
     "aminmax", "any", "all", "argmax", "argmin")
)  # fmt: skip
"""Operators that take statistics; `amc.graph.channels.Statistic` numbers these."""
Vector = Tensor
"""ElementIds ``[n]`` along one dimension."""


@dataclass(eq=False)
class Weights:
    """A layer with weights, as it ran."""

    name: str
    """The module; or the parameter, where a function uses it bare."""
    module: str
    output: Vector
    input: Vector | None = None
    positions: int = 0
    """MACs of all calls = weights × positions."""
    bare: bool = False
    transposed: bool = False
    by_group: bool = False
    norm: str | None = None
    refused: str | None = None
    is_table: bool = False
    """Embeddings ``[n, width]``: a row is looked up, nothing is multiplied."""


@dataclass(frozen=True, eq=False)
class Product:
    """MACs of a product of activations: ``macs`` in all, in proportion to the length of ``ids``."""

    macs: int
    ids: Vector


@dataclass(frozen=True, eq=False)
class Parts:
    """A dimension that became several ``[a, b, …]``: after removing they must still be one block."""

    module: str
    ids: Tensor


@dataclass(frozen=True, eq=False)
class View:
    """A new shape: the number of channels in it may be written down in the module."""

    module: str
    ids: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NormStatistic:
    """A statistic over channels along ``dim``: the ``number``-th of `STATISTICS` in the pass."""

    number: int
    dim: int
    ids: Vector


class Flow:
    """Watches one forward pass (see `amc.graph.trace.trace`) and follows every channel."""

    def __init__(self, model: nn.Module) -> None:
        self.ids = ElementIds()
        self.weights: dict[str, Weights] = {}
        self.products: list[Product] = []
        self.parts: list[Parts] = []
        self.views: list[View] = []
        self.norms: list[NormStatistic] = []
        self.plain_norms: dict[str, Vector] = {}
        """Normalisations over channels without parameters, by module."""
        self.group_norms: dict[str, bool] = {}
        """Group normalisations by module, and whether whole groups are removed."""
        self.parameters: dict[str, Tensor] = {}
        """The ids of parameters and buffers that were followed element by element."""
        self._constants: set[str] = set()
        """Parameters and buffers that an unknown operator read: they stay as they are."""
        self.activations: dict[int, Tensor] = {}
        """The plane of every activation that has one, by its number in the trace."""
        self._model = model
        self.rehearsing = False
        """In a second pass, for layers that run in training only, nothing is counted."""
        self._number = -1
        self._planes: Any = WeakTensorKeyDictionary()
        self._indices: dict[int, int] = {}
        """The number of an activation by its memory."""
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        """By memory that was written to in parts: a tensor that keeps it from being freed, and all of its ids."""
        self._produced: Any = WeakTensorKeyDictionary()
        self._stack: list[str] = [""]
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.numel():
                self.tensors.setdefault(tensor.untyped_storage()._cdata, (name, tensor))

    # What the pass tells

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Knows at any time which module is running."""
        handles = []
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
            handles.append(module.register_forward_hook(self._left, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _left(self, *_: Any) -> None:
        self._stack.pop()

    def made(self, index: int, tensor: Tensor) -> None:
        """Activation ``index`` of the trace is this tensor."""
        if self.rehearsing:
            return
        self._indices[tensor.untyped_storage()._cdata] = index
        plane = self.plane(tensor)
        if plane is not None:
            self.activations[index] = core(plane)

    def outputs(self, tensors: Sequence[Tensor]) -> None:
        """These are what the network gives."""
        for tensor in tensors:
            plane = self.plane(tensor)
            if plane is not None:
                self.ids.freeze(core(plane), "it is the network's output")

    def step(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """One operator has run."""
        name = str(func.overloadpacket).removeprefix("aten.")
        self._number += name in STATISTICS
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._forget_norms(name, args, outs)
        if self._views_parameter(args, outs):
            return  # its ids are found by its storage, once something else than a view needs them
        if isinstance(self.module(), _RECURRENT):
            self._recurs(args, kwargs)
            return
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = RULES["pointwise"]
        if rule is not None:
            found = rule(self, name, func, args, kwargs, out)
        else:
            self._unknown(name, args, kwargs)
            found = None
        planes = found if isinstance(found, list | tuple) else [found]
        for tensor, plane in zip(outs, planes, strict=False):
            self._store(tensor, plane)

    # Planes

    def plane(self, tensor: Any) -> Tensor | None:
        """The ids of a tensor's elements; None where no channel is known."""
        if not isinstance(tensor, Tensor):
            return None
        written = self._written.get(tensor.untyped_storage()._cdata)
        if written is not None:
            return tidy(written[1].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))
        if tensor in self._planes:
            found: Tensor | None = self._planes[tensor]
            return found
        own = self.tensors.get(tensor.untyped_storage()._cdata)
        return self._of_own(*own, tensor) if own is not None and tensor.is_floating_point() else None

    def _of_own(self, name: str, whole: Tensor, tensor: Tensor) -> Tensor | None:
        """The ids of a parameter or buffer, of which ``tensor`` is a view."""
        if name in self.weights and self.weights[name].is_table:
            return self._of_table(self.weights[name].output, whole, tensor)
        ids = self._of_bias(name, whole)
        if ids is None:
            large = whole.numel() > _MOST_IDS or not whole.is_contiguous()
            if large or name in self._constants or self._is_weight(name, whole):
                return None
            if name not in self.parameters:
                self.parameters[name] = self.ids.fresh(whole.numel()).reshape(whole.shape)
            ids = self.parameters[name]
        return tidy(ids.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))

    def _of_table(self, ids: Vector, table: Tensor, tensor: Tensor) -> Tensor | None:
        """Of a table of embeddings ``[n, width]``, or of it transposed."""
        if tensor.shape == table.shape and tensor.stride() == table.stride():
            return ids.expand(tensor.shape)
        return ids[:, None].expand(tensor.shape) if tensor.shape == table.shape[::-1] else None

    def _of_bias(self, name: str, tensor: Tensor) -> Tensor | None:
        """The ids of a layer's own bias, where it is added apart from the layer's product."""
        holder, _, key = name.rpartition(".")
        layer = self.weights.get(holder)
        known = layer is not None and not layer.bare and key == "bias" and tensor.shape == layer.output.shape
        return layer.output if known and layer is not None else None

    def write(self, target: Tensor, plane: Tensor) -> bool:
        """Elements with these ids are written into a part of a tensor. Gives whether that can be followed."""
        storage = target.untyped_storage()
        count = storage.nbytes() // target.element_size()
        if storage._cdata in self.tensors or count > _MOST_IDS:
            return False
        if storage._cdata not in self._written:
            self._written[storage._cdata] = (target, self._all_of(target, count))
        whole = self._written[storage._cdata][1]
        whole.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(plane)
        if storage._cdata in self._indices:
            self.activations[self._indices[storage._cdata]] = whole
        return True

    def _all_of(self, target: Tensor, count: int) -> Tensor:
        """The ids of the whole memory that a tensor shows a part of."""
        found = torch.full((count,), FIXED)
        for tensor, plane in list(self._planes.items()):
            if tensor.untyped_storage()._cdata == target.untyped_storage()._cdata:
                found.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(plane)
        return found

    def cut_into_equal_parts(self, plane: Tensor, dim: int, parts: int) -> None:
        """A dimension is cut into so many parts of equal length: after removing they must still be equal."""
        if dim in varying(plane):
            small = core(plane).movedim(dim, 0)
            self.parts.append(Parts(self.running, small.reshape(parts, -1, *small.shape[1:]).squeeze()))

    def _views_parameter(self, args: Any, outs: Sequence[Tensor]) -> bool:
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if source is None or source in self._planes:
            return False
        storage = source.untyped_storage()._cdata
        return storage in self.tensors and all(t.untyped_storage()._cdata == storage for t in outs)

    def input_plane(self, x: Tensor) -> Tensor | None:
        """The plane of a layer's input; None where that is a parameter or buffer itself."""
        own = x not in self._planes and x.untyped_storage()._cdata in self.tensors
        return None if own else self.plane(x)

    def _store(self, tensor: Tensor, plane: Tensor | None) -> None:
        if plane is None:
            if tensor in self._planes:
                del self._planes[tensor]
            return
        assert plane.shape == tensor.shape, (plane.shape, tensor.shape)
        self._planes[tensor] = plane

    def _is_weight(self, name: str, tensor: Tensor) -> bool:
        """Whether a layer's rule cuts this tensor, so that it is not followed element by element."""
        holder, _, key = name.rpartition(".")
        module = self._model.get_submodule(holder)
        weighty = isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear, nn.utils.parametrize.ParametrizationList))
        return (weighty and (tensor.ndim > 1 or key == "bias" or "original" in key)) or tensor.ndim == 0

    def joined(self, operands: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
        """Tie what an operator combines, given the planes (of equal dimensions) and the tensors; the result's plane."""
        found: Tensor | None = None
        for plane, _ in operands:
            found = self.join(found, plane)
        for plane, tensor in operands:
            if plane is None:
                self.beside(found, tensor)
        return found

    def join(self, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        """Tie two planes of equal dimensions element by element (they broadcast); the plane of the result."""
        if first is None or second is None:
            return first if second is None else second
        mine, theirs = varying(first), varying(second)
        shape = torch.broadcast_shapes(first.shape, second.shape)
        if not mine or not theirs:
            return (first if mine else second).expand(shape)
        if not set(mine) & set(theirs):
            self.ids.freeze(core(second), "it meets channels of another kind")
            return first.expand(shape)
        self.ids.tie(core(first), core(second))
        # the simpler of the two, unless it is only broadcast along what changes in the other
        simple, other = sorted((first, second), key=lambda p: len(varying(p)))
        broadcast = any(simple.shape[d] == 1 and shape[d] > 1 for d in varying(other))
        return (other if broadcast else simple).expand(shape)

    def beside(self, plane: Tensor | None, other: Tensor) -> None:
        """A plane meets a tensor without channels: one of full length along them fixes their number."""
        if plane is not None:
            offset = plane.ndim - other.ndim
            # a dimension that is expanded (stride 0) has any length
            lengths = [1 if other.stride(d) == 0 else other.shape[d] for d in range(other.ndim)]
            if any(d >= offset and lengths[d - offset] > 1 for d in varying(plane)):
                self.ids.freeze(core(plane), "it meets a constant with a fixed number of channels")

    def only_along(self, plane: Tensor, dims: Sequence[int], reason: str) -> Tensor:
        """Tie ids along all other dimensions, so that the plane changes along ``dims`` only."""
        for dim in varying(plane):
            if dim not in dims:
                first = plane.narrow(dim, 0, 1)
                self.ids.tie(core(first), core(plane), reason)
                plane = first.expand(plane.shape)
        return plane

    def _unknown(self, name: str, args: Any, kwargs: Any) -> None:
        for tensor in tree_leaves((args, kwargs)):
            own = self._own(tensor)
            if own is not None and own not in self.parameters:
                self._constants.add(own)
            elif (plane := self.plane(tensor)) is not None:
                self.ids.freeze(core(plane), f"it runs through {name.strip('_')}, which is not understood")

    def _recurs(self, args: Any, kwargs: Any) -> None:
        kind = type(self.module()).__name__
        for tensor in tree_leaves((args, kwargs)):
            if self._own(tensor) is None and (plane := self.plane(tensor)) is not None:
                self.ids.freeze(core(plane), f"{self.running or 'the network'}, a recurrent layer ({kind}), reads it")

    def _own(self, tensor: Any) -> str | None:
        """The parameter or buffer that a tensor is or shows."""
        if not isinstance(tensor, Tensor) or tensor in self._planes:
            return None
        found = self.tensors.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[0]

    # Layers

    def owner(self, weight: Tensor) -> tuple[str, str, bool] | None:
        """Name, module and whether it is a bare parameter, for the weights that an operator was given."""
        own = self.tensors.get(weight.untyped_storage()._cdata)
        if own is not None and own[1].numel() == weight.numel():
            name = own[0]
            holder = name.rpartition(".")[0]
            module = self._model.get_submodule(holder)
            if isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)):
                return holder, holder, False
            if not isinstance(module, nn.utils.parametrize.ParametrizationList):
                whole = own[1].ndim == 2 or own[1].shape == weight.shape
                return (name, holder, True) if own[1].ndim >= 2 and whole else None
        module = self._model.get_submodule(self._stack[-1])  # weights that are computed from parameters
        if (isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)) and own is None) or _parametrized(module):
            return self._stack[-1], self._stack[-1], False
        return None

    def layer(self, weight: Tensor, outputs: int) -> Weights | None:
        """The record of the layer that these weights belong to."""
        found = self.owner(weight)
        if found is None:
            return None
        name, module, bare = found
        if name not in self.weights:
            self.weights[name] = Weights(name, module, self.ids.fresh(outputs), bare=bare)
        layer = self.weights[name]
        return None if layer.is_table or len(layer.output) != outputs else layer

    def table(self, weight: Tensor) -> Weights | None:
        """The record of a table of embeddings ``[n, width]``."""
        own = self.tensors.get(weight.untyped_storage()._cdata)
        if own is None or own[1].shape != weight.shape or not weight.is_floating_point():
            return None
        name, holder = own[0], own[0].rpartition(".")[0]
        if isinstance(self._model.get_submodule(holder), (*CONVS, *TRANSPOSED, nn.Linear)):
            return None
        if name not in self.weights:
            ids = self.ids.fresh(weight.shape[1])
            self.weights[name] = Weights(name, holder, ids, bare=True, transposed=True, is_table=True)
        return self.weights[name] if self.weights[name].is_table else None

    def read(self, layer: Weights, ids: Vector) -> None:
        """The layer's input channels are these."""
        if layer.input is None:
            layer.input = ids
        else:
            self.ids.tie(layer.input, ids)

    def _forget_norms(self, name: str, args: Any, outs: Sequence[Tensor]) -> None:
        """A layer's output that anything but one BatchNorm reads has no norm that is its own."""
        if self.rehearsing:
            return
        for tensor in tree_leaves(args):
            layer = self._produced.get(tensor) if isinstance(tensor, Tensor) else None
            if layer is None:
                continue
            module = self.module()
            knows = isinstance(module, BATCH_NORMS) and module.running_mean is not None
            layer.norm = self._stack[-1] if knows and layer.norm is None and tensor is args[0] else ""

    def produced(self, layer: Weights, tensor: Tensor) -> None:
        """Remember whose output this is."""
        self._produced[tensor] = layer

    def count(self, func: Any, args: Any, kwargs: Any, out: Any, ids: Tensor) -> None:
        """MACs of this operator go with the length of ``ids``."""
        if not self.rehearsing:
            self.products.append(Product(operator_macs(func, args, kwargs, out) or 0, ids.reshape(-1)))

    def ran(self, layer: Weights, weight: Tensor, macs: int) -> None:
        """A layer's weights were applied with so many MACs."""
        if not self.rehearsing:
            layer.positions += macs // weight.numel()

    @property
    def running(self) -> str:
        """The innermost module that is running."""
        return self._stack[-1]

    def module(self) -> nn.Module:
        return self._model.get_submodule(self._stack[-1])

    def mixes(self, dim: int, ids: Vector) -> None:
        """This operator takes statistics over channels."""
        if self.rehearsing:
            return
        self.norms.append(NormStatistic(self._number, dim, ids))


def _parametrized(module: nn.Module) -> bool:
    return isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)) and nn.utils.parametrize.is_parametrized(module)


def channels_along(flow: Flow, plane: Tensor | None, dim: int, count: int, reason: str) -> Vector | None:
    """The ids along ``dim``; what changes along others is tied."""
    if plane is None:
        return None
    small = core(flow.only_along(plane, [dim], reason)).reshape(-1)
    return small if len(small) == count else small[:1].expand(count)
