"""What a site's settings cost in the objective of the search, without an evaluation.

A layer that reads the site has, after re-solving, the error that the remaining channels leave unexplained
(`amc.reconstruction.least_squares.lost_variances`); how much it matters is the layer's sensitivity
(`amc.reconstruction.sensitivity`). Fisher's approximation to second order: errors of layers are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.evaluation.settings import SearchObjective
from amc.graph.build import Graph, consumers
from amc.graph.channels import Layer
from amc.graph.surgery import weight_of
from amc.reconstruction.least_squares import Moments, elements, lost_variances
from amc.reconstruction.sensitivity import Sensitivity, sensitivities
from amc.reconstruction.sequential import undone
from amc.runtime.memory import Memory
from amc.task import Task


class SiteErrors:
    """Estimated rise of the objective of the search for every site and width, all other sites whole."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        orders: Sequence[Tensor],
        moments: Mapping[str, Moments],
        objective: SearchObjective,
        memory: Memory | None = None,
    ) -> None:
        """``memory`` bounds the backward passes that sensitivities take."""
        self._task, self._graph, self._moments = task, graph, moments
        self._orders = [order.numpy() for order in orders]
        self._objective, self._memory = objective, memory
        self._tables: dict[int, Tensor] = {}

    def __call__(self, site: int, width: int) -> float:
        """The error of a site at a width, summed over the layers that read it; 0 at its full width.

        Of a layer whose inputs were not measured (a grouped convolution, heads in a fused attention) the share of its
        inputs that is removed counts: no site may seem free.
        """
        if site not in self._tables:
            readers = [self._reader_errors(layer, site) for layer in consumers(self._graph, site)]
            self._tables[site] = sum(readers, torch.zeros(self._graph.sites[site].channels + 1, dtype=torch.float64))
        return float(self._tables[site][width])

    @cached_property
    def sensitivities(self) -> Mapping[str, Sensitivity]:
        """How much the objective of the search is sensitive to errors of each layer, by its name."""
        return sensitivities(self._task, self._graph.layers, self._memory, self._objective == "logit_mse")

    def _reader_errors(self, layer: Layer, site: int) -> Tensor:
        """The errors of one layer that reads a site, at all of the site's widths ``[channels + 1]``."""
        known, own = self.sensitivities, self.sensitivities.get(layer.name)
        usual = sum(s.whole for s in known.values()) / len(known) if known else 1.0
        axis, moments = layer.input, self._moments.get(layer.name)
        assert axis is not None
        mine, widths = axis.site == site, torch.arange(self._graph.sites[site].channels + 1)
        if moments is None:
            return (1 - widths.double() / widths[-1]) * float(mine.mean()) * (own.whole if own else usual)
        ranks = np.full(len(axis), -1)  # what the site does not own stays
        ranks[mine] = np.argsort(self._orders[site])[axis.channel[mine]]
        weight = weight_of(self._task.model, layer)
        taps = weight[0, 0].numel()
        order = elements(torch.from_numpy(ranks.argsort(kind="stable")).to(weight.device), taps)
        lost = lost_variances(weight.flatten(1), moments, order)
        left = taps * (int((~mine).sum()) + widths * int(mine.sum()) // widths[-1])
        if own is None:
            return (lost.sum(0) / lost[:, 0].sum()).nan_to_num()[left].double().cpu() * usual
        errors = (own.channels.to(lost) @ lost)[left].double().cpu()
        if mine.all():  # without any of its inputs a layer is a branch that is removed, its mean too
            errors[0] += float(own.channels.double().cpu() @ self._offset(layer, moments) ** 2)
        return errors

    def _offset(self, layer: Layer, moments: Moments) -> Tensor:
        """What a layer adds to its stream on average, before the BatchNorm behind it ``[C]``."""
        module: Any = self._task.model.get_submodule(layer.name)
        mean: Tensor = weight_of(self._task.model, layer).flatten(1).double() @ moments.mean.double()
        mean = mean if module.bias is None else mean + module.bias.detach().double()
        if layer.norm is None:
            return mean.cpu()
        norm: Any = self._task.model.get_submodule(layer.norm)
        shift = 0.0 if norm.bias is None else (norm.bias * undone(norm)).detach()
        offset: Tensor = mean - norm.running_mean.double() + shift
        return offset.cpu()
