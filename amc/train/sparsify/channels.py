"""The weights of every channel of a network's groups, as penalties see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.graph.sites import Graph
from amc.importance.group import Slot, slots
from amc.importance.statistics import is_parameter


@dataclass(frozen=True, eq=False)
class ChannelWeights:
    """Which weights belong to each channel of each site: rows of producers, scales of norms, columns of readers."""

    names: tuple[str, ...]
    channels: tuple[int, ...]
    slots: tuple[tuple[Slot, ...], ...]

    @classmethod
    def of(cls, graph: Graph, model: nn.Module) -> ChannelWeights:
        """Of all sites, the trainable weights alone."""
        own = [[s for s in slots(graph, model, index) if _is_trained(model, s.tensor)]
               for index in range(len(graph.sites))]  # fmt: skip
        return cls(tuple(s.name for s in graph.sites), tuple(s.channels for s in graph.sites),
                   tuple(tuple(group) for group in own))  # fmt: skip

    def total(self, model: nn.Module, value: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """For every site ``value`` of each weight, summed over all weights of a channel: ``[C]``, differentiable.

        >>> from amc.graph import build_graph
        >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).eval()
        >>> own = ChannelWeights.of(build_graph(model, torch.ones(1, 2)), model)
        >>> own.total(model, torch.ones_like)[0].tolist()  # two that produce it, one that reads it
        [3.0, 3.0, 3.0]
        """
        return self.total_of(dict(model.named_parameters()), value)

    def total_of(self, tensors: Mapping[str, Tensor], value: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The same of tensors shaped as the network's parameters, by their names; those that lack count nothing."""
        return [self._summed(group, count, tensors, value)
                for group, count in zip(self.slots, self.channels, strict=True)]  # fmt: skip

    def root_mean_squares(self, model: nn.Module) -> dict[str, Tensor]:
        """‖w‖ / √p of every channel ``[C]`` by site name; 0 for channels without weights."""
        squares, sizes = self.total(model, torch.square), self.total(model, torch.ones_like)
        return {name: (own.detach() / size.detach().clamp(min=1)).sqrt()
                for name, own, size in zip(self.names, squares, sizes, strict=True)}  # fmt: skip

    def _summed(
        self, group: Sequence[Slot], count: int, parameters: Mapping[str, Tensor], value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        found = [_by_channel(slot, value(parameters[slot.tensor]), count)
                 for slot in group if slot.tensor in parameters]  # fmt: skip
        if not found:
            return torch.zeros(count, device=next(iter(parameters.values())).device)
        return torch.stack(found).sum(0)

    def scale(self, model: nn.Module, factors: Sequence[Tensor]) -> None:
        """Multiply all weights of each channel by its factor, in place; ``factors`` has ``[C]`` for every site."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for group, factor in zip(self.slots, factors, strict=True):
                for slot in group:
                    scale_slot(slot, parameters[slot.tensor], factor)


def scale_slot(slot: Slot, parameter: Tensor, factor: Tensor) -> None:
    """Multiply the positions of a site in one parameter by the channels' factors ``[C]``, in place."""
    lines = slot.oriented(parameter).movedim(slot.kind.dim, 0)
    own = factor.to(parameter)[slot.channels]
    lines[slot.positions] = lines[slot.positions] * own[:, None, None]


def _by_channel(slot: Slot, values: Tensor, count: int) -> Tensor:
    """Sums of values shaped as a parameter over the weights of each channel ``[C]``."""
    sums = slot.oriented(values).sum([d for d in range(3) if d != slot.kind.dim])
    return torch.zeros(count, device=sums.device, dtype=sums.dtype).index_add(0, slot.channels, sums[slot.positions])


def _is_trained(model: nn.Module, name: str) -> bool:
    return is_parameter(model, name) and model.get_parameter(name).requires_grad
