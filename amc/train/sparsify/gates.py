"""Gates: a factor for every channel, by which it is multiplied wherever it is read.

With all of a channel's gates at 0 the network computes what it computes without the channel, so gates are true to
pruning for any structure: residual streams, depthwise layers, flattened features. They are multiplied into the inputs
of the layers that read the channel during training, and folded into those layers' weights at its end.

A `GateLaw` says what the gates are: how they are drawn in a step, what they cost, and what they are at the end. All
samples of a step have the same gates. The laws' parameters are trained by Adam, since their scale is not that of
weights, with a constant rate of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ConfigError
from amc.graph.channels import CONVS, TRANSPOSED
from amc.graph.sites import Graph, consumers
from amc.importance.group import Reader, Slot, slots
from amc.importance.statistics import is_parameter
from amc.reconstruction import recalibrate
from amc.task import nested
from amc.train.averaging import checked
from amc.train.hooks import Step
from amc.train.sparsify.channels import ChannelWeights, scale_slot
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier

_MODULES = (*CONVS, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True, eq=False)
class GatedChannels:
    """The channels that have gates, site after site."""

    sites: tuple[int, ...]
    """The numbers of the sites; the others are not gated."""
    names: tuple[str, ...]
    channels: tuple[int, ...]
    readers: Mapping[str, Tensor]
    """For every module that reads some of them, the gate of each of its inputs, counted from 1; 0 for none."""
    weights: Tensor
    """How many weights belong to each channel ``[G]``."""

    def __len__(self) -> int:
        return sum(self.channels)

    def by_site(self, values: Tensor) -> dict[str, Tensor]:
        """Values of all gates ``[G]``, site by site."""
        return dict(zip(self.names, torch.split(values, list(self.channels)), strict=True))


class GateLaw(ABC):
    """What the gates of a network are. `parameters` are trained."""

    parameters: Sequence[Tensor]

    @abstractmethod
    def sample(self, step: Step) -> Tensor:
        """Gates for one step ``[G]``, differentiable by the parameters; drawn by torch's generator, if at all."""

    @abstractmethod
    def final(self) -> Tensor:
        """The gates that are folded into the trained network ``[G]``, without chance."""

    @abstractmethod
    def penalty(self, step: Step) -> Tensor:
        """What the gates add to the loss."""

    @abstractmethod
    def scores(self) -> Tensor:
        """How important the channels are ``[G]``, at least 0."""


def gated_channels(network: DenseNetwork) -> GatedChannels:
    """Every site whose channels are read by convolutions and linear layers alone. Raises ConfigError where none is."""
    graph, model = network.graph, network.model
    called = _called(network)
    sites = [i for i in range(len(graph.sites)) if _readable(graph, i, called)]
    if not sites:
        raise ConfigError("--sparsify: this network has no channels that only convolutions and linear layers read, so "
                          "none can have a gate. Use --sparsify group-lasso.")  # fmt: skip
    counts = [graph.sites[i].channels for i in sites]
    first = dict(zip(sites, [1 + sum(counts[:k]) for k in range(len(counts))], strict=True))
    readers: dict[str, Tensor] = {}
    for layer in graph.layers:
        axis = layer.input
        if layer.name in called and axis is not None and any((axis.site == site).any() for site in sites):
            places = zip(axis.site.tolist(), axis.channel.tolist(), strict=True)
            numbers = [first[s] + c if s in first else 0 for s, c in places]
            readers[layer.name] = torch.tensor(numbers, device=network.task.device)
    everything = ChannelWeights.of(graph, model).total(model, torch.ones_like)
    weights = torch.cat([everything[i].detach() for i in sites]).to(network.task.device)
    return GatedChannels(tuple(sites), tuple(graph.sites[i].name for i in sites), tuple(counts), readers, weights)


def _called(network: DenseNetwork) -> set[str]:
    """The layers that the network calls as modules."""
    seen: set[str] = set()
    found = {name: module for name, module in network.model.named_modules() if isinstance(module, _MODULES)}
    handles = [m.register_forward_pre_hook(partial(_note, seen, name)) for name, m in found.items()]
    modes = {module: module.training for module in network.model.modules()}
    try:
        with torch.no_grad():
            nested.call(network.model.eval(), nested.to(network.task.example, network.task.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen


def _note(seen: set[str], name: str, module: nn.Module, args: Any) -> None:
    seen.add(name)


def _readable(graph: Graph, site: int, called: set[str]) -> bool:
    layers = [layer for layer in consumers(graph, site) if layer.has_tensors]
    return bool(layers) and all(layer.name in called for layer in layers)


class Gates(Sparsifier):
    """Trains a network with gates by a law."""

    changes_forward = True

    def __init__(self, network: DenseNetwork, channels: GatedChannels, law: GateLaw, lr: float, settings: str) -> None:
        """``lr``: Adam's rate for the law's parameters. ``settings``: what tells this training from another one."""
        self.law, self.channels = law, channels
        self._network, self._settings = network, settings
        self._optimizer = torch.optim.Adam(list(law.parameters), lr=lr)
        self._drawn: Tensor | None = None
        self._handles = [
            network.model.get_submodule(name).register_forward_pre_hook(partial(self._multiply, index))
            for name, index in channels.readers.items()
        ]

    def _multiply(self, index: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs of a layer times their gates."""
        inputs: Tensor = args[0]
        gates = self._drawn if self._drawn is not None and module.training else self.law.final().detach()
        own = torch.cat([gates.new_ones(1), gates])[index].to(inputs.dtype)
        if isinstance(module, nn.Linear):
            return (inputs * own, *args[1:])
        own = own.repeat(inputs.shape[1] // len(own))  # a grouped convolution's input is one of each group
        return (inputs * own.reshape(-1, *[1] * (inputs.ndim - 2)), *args[1:])

    def before_step(self, step: Step) -> None:
        """Draw the gates of this step."""
        self._optimizer.zero_grad(set_to_none=True)
        self._drawn = self.law.sample(step)

    def penalty(self, step: Step) -> Tensor | None:
        """What the law adds to the loss."""
        return self.law.penalty(step)

    def after_step(self, step: Step) -> None:
        """Train the law's parameters."""
        self._optimizer.step()
        self._drawn = None

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The law's scores; sites without gates have none."""
        return self.channels.by_site(self.law.scores().detach())

    def finish(self, model: nn.Module) -> None:
        """Fold the final gates into the layers that read the channels, and recompute BatchNorm statistics with them."""
        for handle in self._handles:
            handle.remove()
        gates = self.law.final().detach()
        fold(self._network.graph, model, self.channels, gates)
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        recalibrate(model, norms, self._network.task)

    def state(self) -> Mapping[str, Any]:
        """The law's parameters, and Adam's moments of them."""
        values = {str(number): p.detach().clone() for number, p in enumerate(self.law.parameters)}
        return {"settings": self._settings, "values": values, "optimizer": self._optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`. Raises ValueError for one of another training."""
        if state["settings"] != self._settings:
            raise ValueError("the gates are of another training")
        known = {str(number): p.detach() for number, p in enumerate(self.law.parameters)}
        found = checked(state["values"], known)
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for number, parameter in enumerate(self.law.parameters):
                parameter.copy_(found[str(number)])


def fold(graph: Graph, model: nn.Module, channels: GatedChannels, gates: Tensor) -> None:
    """Multiply the weights that read every gated channel by its gate ``[G]``, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for site, own in zip(channels.sites, channels.by_site(gates).values(), strict=True):
            for slot in _reading(graph, model, site):
                scale_slot(slot, parameters[slot.tensor], own)


def _reading(graph: Graph, model: nn.Module, site: int) -> list[Slot]:
    return [s for s in slots(graph, model, site) if s.kind is Reader and is_parameter(model, s.tensor)]
