"""Site errors: estimate how much a site's setting increases the objective of the search, without an evaluation.

A site's operator computes the errors of its settings (`CompressionOperator.errors`) from the estimates in this module.
For removed channels: after re-solving, a layer that reads them has the error that the remaining channels leave
unexplained (`amc.reconstruction.least_squares.lost_variances`). It is weighted by the layer's sensitivity
(`amc.reconstruction.sensitivity`). In this second-order approximation with Fisher's information, errors of layers add
up.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.evaluation.settings import SearchObjective
from amc.graph.channels import Layer
from amc.graph.sites import consumers
from amc.graph.surgery import weight_of
from amc.operators.operator import NetworkFacts
from amc.operators.registry import OPERATORS, Operators, operator_of
from amc.reconstruction.least_squares import lost_variances
from amc.reconstruction.moments import Moments
from amc.reconstruction.regression import inverse_scale
from amc.reconstruction.rows import elements
from amc.reconstruction.sensitivity import Sensitivity, sensitivities
from amc.runtime.memory import Memory
from amc.space.sites import Setting, SiteSettings
from amc.task import Task


class SiteErrors:
    """Estimated increase of the objective of the search for every site and setting, with all other sites unchanged."""

    def __init__(
        self,
        task: Task,
        facts: NetworkFacts,
        sites: Sequence[SiteSettings],
        moments: Mapping[str, Moments],
        objective: SearchObjective,
        memory: Memory | None = None,
        operators: Operators = OPERATORS,
    ) -> None:
        """``memory`` limits the backward passes for sensitivities."""
        self._task, self._facts, self._sites, self._moments = task, facts, tuple(sites), moments
        self._graph, self._orders = facts.graph, facts.orders
        self._objective, self._memory, self._operators = objective, memory, operators
        self._tables: dict[int, dict[Setting, float]] = {}

    def with_orders(self, orders: Sequence[Tensor]) -> SiteErrors:
        """The errors where channels are removed in other orders; sensitivities are shared."""
        self.sensitivities  # noqa: B018  (computed once, for all of them)
        other = copy.copy(self)
        other._facts = replace(self._facts, orders=[order.numpy() for order in orders])
        other._orders, other._tables = other._facts.orders, {}
        return other

    def __call__(self, site: int, setting: Setting) -> float:
        """The error of a site at a setting; 0 at the original's."""
        if site not in self._tables:
            own = self._sites[site]
            errors = operator_of(own.operators[0], self._operators).errors(self._facts, own, self)
            self._tables[site] = dict(zip(own.settings, errors, strict=True))
        return self._tables[site][setting]

    def removing_channels(self, group: int) -> Tensor:
        """Errors ``[C + 1]`` by the number of kept channels of a group, summed over the layers that read them.

        For a layer without moments of its inputs (a grouped convolution, heads in a fused attention) it is the share
        of removed inputs, so that no group seems free.
        """
        readers = [self._reader_errors(layer, group) for layer in consumers(self._graph, group)]
        return sum(readers, torch.zeros(self._graph.sites[group].channels + 1, dtype=torch.float64))

    def changing_weights(self, layer: str, weight: Tensor) -> float:
        """Error if a layer of the original gets other weights, from the second moments of its inputs.

        For a layer without moments it is the change's share of the weights' squares.
        """
        known, own = self.sensitivities, self.sensitivities.get(layer)
        usual = sum(s.whole for s in known.values()) / len(known) if known else 1.0
        module: Any = self._task.model.get_submodule(layer)
        change, moments = (weight - module.weight.detach()).flatten(1), self._moments.get(layer)
        if moments is None or own is None:
            share = float(change.square().sum() / module.weight.detach().square().sum().clamp_min(1e-30))
            return share * (own.whole if own else usual)
        rows = change.to(moments.covariance)
        squares = ((rows @ moments.covariance) * rows).sum(1) + (rows @ moments.mean.to(rows)) ** 2
        return float(own.channels.to(squares) @ squares)

    @cached_property
    def sensitivities(self) -> Mapping[str, Sensitivity]:
        """Sensitivity of the objective of the search to errors of each layer, by layer name."""
        return sensitivities(self._task, self._graph.layers, self._memory, self._objective == "logit_mse")

    def _reader_errors(self, layer: Layer, site: int) -> Tensor:
        """Errors ``[C + 1]`` of one layer that reads a channel group, at all widths of the group."""
        known, own = self.sensitivities, self.sensitivities.get(layer.name)
        usual = sum(s.whole for s in known.values()) / len(known) if known else 1.0
        axis, moments = layer.input, self._moments.get(layer.name)
        assert axis is not None
        mine, widths = axis.site == site, torch.arange(self._graph.sites[site].channels + 1)
        if moments is None:
            return (1 - widths.double() / widths[-1]) * float(mine.mean()) * (own.whole if own else usual)
        ranks = np.full(len(axis), -1)  # channels of other sites stay
        ranks[mine] = np.argsort(self._orders[site])[axis.channel[mine]]
        weight = weight_of(self._task.model, layer)
        taps = weight[0, 0].numel()
        order = elements(torch.from_numpy(ranks.argsort(kind="stable")).to(weight.device), taps)
        lost = lost_variances(weight.flatten(1), moments, order)
        left = taps * (int((~mine).sum()) + widths * int(mine.sum()) // widths[-1])
        if own is None:
            return (lost.sum(0) / lost[:, 0].sum()).nan_to_num()[left].double().cpu() * usual
        errors = (own.channels.to(lost) @ lost)[left].double().cpu()
        if mine.all():  # width 0 removes the branch, and with it the layer's mean output
            errors[0] += float(own.channels.double().cpu() @ self._offset(layer, moments) ** 2)
        return errors

    def _offset(self, layer: Layer, moments: Moments) -> Tensor:
        """The layer's mean contribution ``[C]`` to the residual stream, in units of its BatchNorm's input, if any."""
        module: Any = self._task.model.get_submodule(layer.name)
        mean: Tensor = weight_of(self._task.model, layer).flatten(1).double() @ moments.mean.double()
        mean = mean if module.bias is None else mean + module.bias.detach().double()
        if layer.norm is None:
            return mean.cpu()
        norm: Any = self._task.model.get_submodule(layer.norm)
        shift = 0.0 if norm.bias is None else (norm.bias * inverse_scale(norm)).detach()
        offset: Tensor = mean - norm.running_mean.double() + shift
        return offset.cpu()
