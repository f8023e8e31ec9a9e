"""The layers with weights that run in a pass, and the ids of their channels."""

# mypy: disable-error-code=no-untyped-call
from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from amc.graph.channels import BATCH_NORMS, CONVS, TRANSPOSED
from amc.graph.elements import ElementIds
from amc.graph.flow.records import Vector, WeightedLayer
from amc.graph.flow.running import OwnTensors, RunningModule

_WEIGHTED = (*CONVS, *TRANSPOSED, nn.Linear)


class WeightedLayers:
    """The layers that have run so far, in forward order. Each has its own ids for its output channels."""

    def __init__(self, ids: ElementIds, own: OwnTensors, running: RunningModule) -> None:
        self.by_name: dict[str, WeightedLayer] = {}
        self._ids, self._own, self._running = ids, own, running
        self._makers: Any = WeakTensorKeyDictionary()

    def of(self, weight: Tensor, outputs: int) -> WeightedLayer | None:
        """The layer whose weights an operator was given; None where they are computed, or of another width."""
        found = self._owner(weight)
        if found is None:
            return None
        name, module, bare = found
        if name not in self.by_name:
            self.by_name[name] = WeightedLayer(name, module, self._ids.fresh(outputs), bare=bare)
        layer = self.by_name[name]
        return None if layer.is_table or len(layer.output) != outputs else layer

    def of_table(self, weight: Tensor) -> WeightedLayer | None:
        """The table of embeddings ``[n, width]`` that an operator was given."""
        own = self._own.find(weight)
        if own is None or own[1].shape != weight.shape or not weight.is_floating_point():
            return None
        name, holder = own[0], own[0].rpartition(".")[0]
        if isinstance(self._own.holder(name), _WEIGHTED):
            return None
        if name not in self.by_name:
            ids = self._ids.fresh(weight.shape[1])
            self.by_name[name] = WeightedLayer(name, holder, ids, bare=True, transposed=True, is_table=True)
        return self.by_name[name] if self.by_name[name].is_table else None

    def _owner(self, weight: Tensor) -> tuple[str, str, bool] | None:
        """Name, module and whether it is a bare parameter."""
        own = self._own.find(weight)
        if own is not None and own[1].numel() == weight.numel():
            name = own[0]
            holder, module = name.rpartition(".")[0], self._own.holder(name)
            if isinstance(module, _WEIGHTED):
                return holder, holder, False
            if not isinstance(module, ParametrizationList):
                whole = own[1].ndim == 2 or own[1].shape == weight.shape
                return (name, holder, True) if own[1].ndim >= 2 and whole else None
        module = self._running.module  # weights that are computed from parameters
        if isinstance(module, _WEIGHTED) and (own is None or is_parametrized(module)):
            return self._running.name, self._running.name, False
        return None

    def set_input(self, layer: WeightedLayer, ids: Vector) -> None:
        """Set the layer's input channels; those of a second call are tied to those of the first."""
        if layer.input is None:
            layer.input = ids
        else:
            self._ids.tie(layer.input, ids)

    def set_output(self, layer: WeightedLayer, tensor: Tensor) -> None:
        """Note that a tensor is the layer's output."""
        self._makers[tensor] = layer

    def note_readers(self, args: Any) -> None:
        """Note that an operator reads ``args``: a layer has a norm only if one BatchNorm alone reads its output."""
        for tensor in tree_leaves(args):
            layer = self._makers.get(tensor) if isinstance(tensor, Tensor) else None
            if layer is None:
                continue
            module = self._running.module
            knows = isinstance(module, BATCH_NORMS) and module.running_mean is not None
            layer.norm = self._running.name if knows and layer.norm is None and tensor is args[0] else ""
