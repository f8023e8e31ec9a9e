"""The plane of every tensor of a pass: activations, tensors that are written in parts, parameters and buffers."""

# mypy: disable-error-code=no-untyped-call
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakTensorKeyDictionary

from amc.graph.channels import CONVS, TRANSPOSED
from amc.graph.elements import FIXED, ElementIds, tidy
from amc.graph.flow.records import Vector, WeightedLayer
from amc.graph.flow.running import OwnTensors
from amc.graph.flow.weighted import WeightedLayers

_MOST_IDS = 1 << 22  # elements of a tensor that is followed element by element


class Planes:
    """The ids of the elements of every tensor, as far as they are known."""

    def __init__(self, ids: ElementIds, own: OwnTensors, layers: WeightedLayers) -> None:
        self.parameters: dict[str, Tensor] = {}
        """The ids of parameters and buffers that were followed element by element, by name."""
        self._ids, self._own, self._layers = ids, own, layers
        self._constants: set[str] = set()
        """Parameters and buffers that an unknown operator read: they stay as they are."""
        self._planes: Any = WeakTensorKeyDictionary()
        self._written: dict[int, tuple[Tensor, Tensor]] = {}
        """By memory that was written to in parts: a tensor that keeps it from being freed, and all of its ids."""

    def of(self, tensor: Any) -> Tensor | None:
        """The ids of a tensor's elements; None where no channel is known."""
        if not isinstance(tensor, Tensor):
            return None
        written = self.written(tensor)
        if written is not None:
            return tidy(written.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))
        if tensor in self._planes:
            found: Tensor | None = self._planes[tensor]
            return found
        own = self._own.find(tensor)
        return self._of_own(*own, tensor) if own is not None and tensor.is_floating_point() else None

    def of_input(self, x: Tensor) -> Tensor | None:
        """The plane of a layer's input; None where that is a parameter or buffer itself."""
        return None if self.parameter_shown(x) is not None else self.of(x)

    def parameter_shown(self, tensor: Any) -> str | None:
        """The parameter or buffer that a tensor is or shows, unless an operator has given the tensor a plane."""
        if not isinstance(tensor, Tensor) or tensor in self._planes:
            return None
        found = self._own.find(tensor)
        return None if found is None else found[0]

    def store(self, tensor: Tensor, plane: Tensor | None) -> None:
        """Set the plane of an operator's output."""
        if plane is None:
            if tensor in self._planes:
                del self._planes[tensor]
            return
        assert plane.shape == tensor.shape, (plane.shape, tensor.shape)
        self._planes[tensor] = plane

    def only_views(self, args: Any, outs: Sequence[Tensor]) -> bool:
        """Whether an operator's outputs are views of a parameter or buffer: their ids are found by their memory."""
        source = args[0] if args else None
        if not isinstance(source, Tensor) or self.parameter_shown(source) is None:
            return False
        memory = source.untyped_storage()._cdata
        return all(t.untyped_storage()._cdata == memory for t in outs)

    # Parameters and buffers

    def _of_own(self, name: str, whole: Tensor, tensor: Tensor) -> Tensor | None:
        """The ids of a parameter or buffer, of which ``tensor`` is a view."""
        layer = self._layers.by_name.get(name)
        if layer is not None and layer.is_table:
            return _of_table(layer.output, whole, tensor)
        ids = self._of_bias(name, whole)
        if ids is None:
            large = whole.numel() > _MOST_IDS or not whole.is_contiguous()
            if large or name in self._constants or _is_weight(self._own.holder(name), name, whole):
                return None
            if name not in self.parameters:
                self.parameters[name] = self._ids.fresh(whole.numel()).reshape(whole.shape)
            ids = self.parameters[name]
        return tidy(ids.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()))

    def _of_bias(self, name: str, tensor: Tensor) -> Tensor | None:
        """The ids of a layer's own bias, where it is added apart from the layer's product."""
        holder, _, key = name.rpartition(".")
        layer: WeightedLayer | None = self._layers.by_name.get(holder)
        if layer is None or layer.bare or key != "bias" or tensor.shape != layer.output.shape:
            return None
        return layer.output

    def keep_constant(self, name: str) -> bool:
        """Never follow a parameter or buffer. False where it is followed already."""
        if name in self.parameters:
            return False
        self._constants.add(name)
        return True

    # Memory that is written in parts

    def written(self, tensor: Tensor) -> Tensor | None:
        """All ids of the memory that a tensor shows, where parts of it were written."""
        found = self._written.get(tensor.untyped_storage()._cdata)
        return None if found is None else found[1]

    def write(self, target: Tensor, plane: Tensor) -> bool:
        """Write ids into the part of a tensor that is overwritten. False where that cannot be followed."""
        storage = target.untyped_storage()
        count = storage.nbytes() // target.element_size()
        if self._own.find(target) is not None or count > _MOST_IDS:
            return False
        if storage._cdata not in self._written:
            self._written[storage._cdata] = (target, self._all_of(target, count))
        whole = self._written[storage._cdata][1]
        whole.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(plane)
        return True

    def _all_of(self, target: Tensor, count: int) -> Tensor:
        """The ids of the whole memory that a tensor shows a part of."""
        found = torch.full((count,), FIXED)
        for tensor, plane in list(self._planes.items()):
            if tensor.untyped_storage()._cdata == target.untyped_storage()._cdata:
                found.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(plane)
        return found


def _of_table(ids: Vector, table: Tensor, tensor: Tensor) -> Tensor | None:
    """Of a table of embeddings ``[n, width]``, or of it transposed."""
    if tensor.shape == table.shape and tensor.stride() == table.stride():
        return ids.expand(tensor.shape)
    return ids[:, None].expand(tensor.shape) if tensor.shape == table.shape[::-1] else None


def _is_weight(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a layer's rule cuts this tensor of ``module``, so that it is not followed element by element."""
    key = name.rpartition(".")[2]
    weighted = isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear, ParametrizationList))
    return (weighted and (tensor.ndim > 1 or key == "bias" or "original" in key)) or tensor.ndim == 0
