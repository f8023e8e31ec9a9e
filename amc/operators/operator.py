"""The interface of an operator, which implements one kind of compression.

A new kind (bits, sparse weights, rank, sharing) is one file beside the others and one entry in
`amc.operators.registry`. Only the operator interprets its settings: spaces keep them in order, searchers see their
positions, cost models their sizes, and policy files contain what `CompressionOperator.record` returns.

The life of a setting, and the method for each step:

==================  ========================================================================================
offered             `sites`: the network's sites and their ordered settings
costs computed      `costs`: exact costs of all policies
error estimated     `errors`: increase of the objective of the search, without an evaluation
evaluated           `applier`: applies the setting to a scratch network, thousands of times
stored and loaded   `record`, `read`: the entry in policy.json
applied             `apply`: applies the entry of policy.json to a copy of the original
kept in training    `hold`: restores the setting after every step, if training would undo it
written             `write`: changes the ONNX file, if that stores the setting otherwise than torch
==================  ========================================================================================

`amc.testing.check_operator` checks an operator on a small network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from amc.errors import PolicyError
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.space.file_size import FileLayout
from amc.space.resources import CostModel, ResourceModel
from amc.space.sites import Ints, Setting, SiteSettings

Solved = Mapping[str, Mapping[str, Tensor]]
"""Re-solved tensors by layer: already cut along the input axis, but not along the output axis."""


@dataclass(frozen=True, eq=False)
class NetworkFacts:
    """A trained network and facts about it, for operators."""

    model: nn.Module
    graph: Graph
    layout: FileLayout | None = None
    """The layout of its ONNX file; without it, file sizes and removable branches are unknown."""
    orders: Sequence[Ints] = ()
    """After calibration: the channels ``[C]`` of every channel group, most important first."""

    @cached_property
    def resources(self) -> ResourceModel:
        """The exact cost model for widths of all channel groups."""
        return ResourceModel(self.graph, self.model, self.layout)


@dataclass(frozen=True)
class SettingBounds:
    """Bounds on the settings that operators offer."""

    min_keep: float = 0.2
    """Least share of a site's size."""
    step: int | None = None
    """Widths are multiples of this; None: depends on the site's width."""
    bits: tuple[int, ...] | None = None
    """Bits of weights; None: all that the network's file can hold."""


class PolicySetting(Protocol):
    """The entry of policy.json for one site: all that is needed to apply the setting to the original network."""

    @property
    def kind(self) -> str:
        """The kind of the operator."""

    @property
    def size(self) -> int:
        """Size of the setting (see `amc.space.sites.SiteSettings`)."""

    @property
    def of(self) -> int:
        """Size of the original's setting."""

    def to_json(self) -> dict[str, Any]:
        """JSON values, including ``kind``."""


class ErrorMeasures(Protocol):
    """Estimates of errors in the network, for operators (`amc.evaluation.site_errors`)."""

    def removing_channels(self, group: int) -> Sequence[float] | Tensor:
        """Increase of the objective ``[C + 1]`` by the number of kept channels of a group; all else is unchanged."""

    def changing_weights(self, layer: str, weight: Tensor) -> float:
        """Increase of the objective if a layer of the original gets other weights, of the same shape."""


class Restriction(Protocol):
    """Restricts weights, such as to few bits. It is hashable; equal ones do the same."""

    def __call__(self, weight: Tensor, moments: Tensor, /) -> Tensor:
        """Restricted weights V ``[C, D]`` with a small error E‖(W − V) x‖², for ``moments [D, D]`` = E x xᵀ."""


class Applier(Protocol):
    """Applies an operator's settings to one scratch network, again and again.

    It replaces tensors and never writes into them, because they may belong to the original or to another policy.
    """

    restores: bool
    """Whether `apply` also undoes the changes of the previous policy. If not, or if there are several operators, the
    scratch network gets the original's tensors back before every policy."""

    def kept(self, settings: Sequence[Setting]) -> Kept | None:
        """The kept channels of every group of the graph; None if the operator does not remove channels."""

    def apply(self, settings: Sequence[Setting], solved: Solved) -> None:
        """Change the scratch network to these settings, one for each of the operator's sites."""

    def finish(self, model: nn.Module, settings: Sequence[Setting]) -> None:
        """Prepare ``model``, a copy of the scratch network with these settings, so that training does not undo them."""


class CompressionOperator(ABC):
    """One kind of compression."""

    kind: ClassVar[str]
    """Name in policy.json and on the command line."""
    summary: ClassVar[str]
    reference: ClassVar[str] = ""
    extends: ClassVar[str] = ""
    """For an operator without own sites: the kind of the operator whose sites it adds settings to, and which applies
    them."""
    cuts: ClassVar[bool] = False
    """Whether it removes channels. Such operators are applied first; then weights are re-solved, and others follow."""
    proved: ClassVar[frozenset[str]] = frozenset()
    """Resources whose savings show in model.onnx, so that limits on them can be verified."""

    @abstractmethod
    def sites(
        self, network: NetworkFacts, bounds: SettingBounds, offered: tuple[SiteSettings, ...]
    ) -> tuple[SiteSettings, ...]:
        """The ``offered`` sites of earlier operators, followed by this one's sites or with this one's settings added.

        Names of sites are unique: ``KIND:LAYER``. Sites of `channels` have just the name of their first layer.
        """

    def costs(self, network: NetworkFacts, sites: Sequence[SiteSettings], under: CostModel) -> CostModel:
        """The cost model for sizes ``[B, S]`` of all ``sites``, on top of ``under``, that of earlier operators.

        The original's setting of a site must not change the costs.
        """
        return under

    def errors(self, network: NetworkFacts, site: SiteSettings, measures: ErrorMeasures) -> Sequence[float]:
        """Increase ``[K]`` of the objective of the search for every setting of a site, with all others unchanged.

        The last is 0. The default is the removed share of the site's size.
        """
        return [1 - size / site.sizes[-1] for size in site.sizes]

    def applier(self, scratch: nn.Module, network: NetworkFacts, sites: Sequence[SiteSettings]) -> Applier:
        """An applier for ``sites``, this operator's own, on ``scratch``, a copy of the network."""
        raise NotImplementedError(f"{self.kind} has no sites of its own")

    def restrictions(self, sites: Sequence[SiteSettings], settings: Sequence[Setting]) -> Mapping[str, Restriction]:
        """By layer, how settings of this operator's ``sites`` restrict its weights, where inputs' moments help.

        Sequential reconstruction then restricts a layer's weights while it runs, and the layers after it are re-solved
        for what comes out. The applier must not change weights that are restricted already.
        """
        return {}

    @abstractmethod
    def record(self, network: NetworkFacts, site: SiteSettings, setting: Setting) -> PolicySetting | None:
        """The entry of policy.json for a setting; None if the setting belongs to another operator."""

    @abstractmethod
    def read(self, name: str, entry: Mapping[str, Any]) -> PolicySetting:
        """Parse and check the entry of policy.json for the site ``name``. Raises PolicyError."""

    def apply(self, model: nn.Module, network: NetworkFacts, settings: Mapping[str, PolicySetting]) -> None:
        """Apply entries of policy.json, by site, to ``model``, a copy of the network.

        Raises PolicyError if the network has no such site.
        """
        raise NotImplementedError(f"{self.kind} has no sites of its own")

    def hold(self, model: nn.Module, settings: Mapping[str, PolicySetting]) -> None:
        """Restore the settings in a network in training, in place. Called after every step of the optimiser.

        Only needed if settings constrain the values of weights.
        """
        return

    def trained_straight_through(self, settings: Mapping[str, PolicySetting]) -> Collection[str]:
        """Names of the parameters that are trained by the straight-through estimator (Bengio et al. 2013,
        arXiv:1308.3432): steps change unrestricted copies, which `hold` restricts. Others are projected at every step.
        """
        return ()

    def write(
        self, proto: Any, model: nn.Module, settings: Mapping[str, PolicySetting], removed: Collection[str]
    ) -> None:
        """Change the exported ONNX model, in place, where the file stores settings otherwise than torch does.

        ``model`` is the compressed network; layers ``removed`` are not in the file. Raises ExportError.
        """
        return


class ColumnCosts:
    """A cost model on some columns of the sizes ``[B, S]``: one operator's sites among those of several."""

    def __init__(self, model: CostModel, columns: Sequence[int]) -> None:
        self._model, self._columns = model, list(columns)

    def costs(self, sizes: Any) -> Mapping[str, Any]:
        """Costs ``[B]`` by resource of ``sizes [B, S]``."""
        return self._model.costs(np.atleast_2d(np.asarray(sizes, np.int64))[:, self._columns])


def whole_number(name: str, entry: Mapping[str, Any], key: str, least: int = 0) -> int:
    """An integer in a site's entry of policy.json. Raises PolicyError for anything else, such as True or 1.0."""
    value = entry.get(key)
    if type(value) is not int or value < least:
        raise PolicyError(f"site {name!r} needs a whole number of at least {least} for {key}, but has {value!r}.")
    return value
