"""The contract of an operator: one kind of compression, and all that the rest of amc asks of it.

A new kind (bits, sparse weights, rank, sharing) is one file beside the others and one entry in
`amc.operators.registry`. Nothing above an operator knows what its settings mean: spaces hold them in order, searchers
see their positions, cost models their sizes, and a policy file what `CompressionOperator.record` gives.

The way of one setting:

=================  =========================================================================================
offered            `sites`: the network's sites and their ordered settings
paid for           `costs`: exact costs of all policies
estimated          `errors`: what a setting costs in the objective of the search, without an evaluation
tried              `applier`: the setting on a scratch network, thousands of times
written and read   `record`, `read`: what policy.json says of it
applied            `apply`: the same for real, from what policy.json says
kept in training   `hold`: after every step, where training would undo the setting
=================  =========================================================================================

`amc.testing.check_operator` tries an operator of yours on a small network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from amc.errors import PolicyError
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.space.resources import CostModel, FileLayout, ResourceModel
from amc.space.sites import Ints, Setting, SiteSettings

Solved = Mapping[str, Mapping[str, Tensor]]
"""Tensors by layer that reconstruction has solved: cut along the input already, whole along the output."""


@dataclass(frozen=True, eq=False)
class NetworkFacts:
    """A trained network, and what is known of it: operators take from it what they need."""

    model: nn.Module
    graph: Graph
    layout: FileLayout | None = None
    """What its ONNX file is made of. Without it neither file sizes nor removable branches are known."""
    orders: Sequence[Ints] = ()
    """After calibration: for every channel group of the graph its channels ``[C]``, the most important first."""

    @cached_property
    def resources(self) -> ResourceModel:
        """Exact costs by the widths of all channel groups."""
        return ResourceModel(self.graph, self.model, self.layout)


@dataclass(frozen=True)
class SettingBounds:
    """How far settings may go."""

    min_keep: float = 0.2
    """The least share of a site's size."""
    step: int | None = None
    """What widths are multiples of; None: chosen by the site's width."""


class PolicySetting(Protocol):
    """What policy.json says of one site: all that is needed to apply it to the original network."""

    @property
    def kind(self) -> str:
        """The operator's."""

    @property
    def size(self) -> int:
        """The setting's size, see `amc.space.sites.SiteSettings`."""

    @property
    def of(self) -> int:
        """The size of the original's setting."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, ``kind`` among them."""


class ErrorMeasures(Protocol):
    """What can be estimated of errors in the network (`amc.evaluation.site_errors`)."""

    def removing_channels(self, group: int) -> Sequence[float] | Tensor:
        """Rise of the objective of the search by how many channels of a group stay ``[C + 1]``, all else whole."""


class Applier(Protocol):
    """Puts an operator's settings onto one scratch network, again and again.

    Tensors are replaced, never written into: they may be the original's, or another policy's.
    """

    restores: bool
    """Whether `apply` also sets back what the policy before it has changed. Where an operator does not, or is not the
    only one, the scratch network is given the original's tensors before every policy."""

    def kept(self, settings: Sequence[Setting]) -> Kept | None:
        """The channels that stay in every group of the graph; None where the operator removes none."""

    def apply(self, settings: Sequence[Setting], solved: Solved) -> None:
        """Let the network compute what it would with these settings, one for each of the operator's sites."""

    def finish(self, model: nn.Module, settings: Sequence[Setting]) -> None:
        """Prepare a copy of the scratch network that has these settings for training: what is removed stays removed."""


class CompressionOperator(ABC):
    """One kind of compression."""

    kind: ClassVar[str]
    """In policy.json and on the command line."""
    summary: ClassVar[str]
    reference: ClassVar[str] = ""
    extends: ClassVar[str] = ""
    """The kind of the operator whose sites it adds settings to, where it has none of its own: that one applies them."""
    cuts: ClassVar[bool] = False
    """Whether it removes channels: what is left is re-solved, and then operators that do not cut are applied."""
    proved: ClassVar[frozenset[str]] = frozenset()
    """Resources of which model.onnx shows what its settings save, so that a limit on them can be proved."""

    @abstractmethod
    def sites(
        self, network: NetworkFacts, bounds: SettingBounds, offered: tuple[SiteSettings, ...]
    ) -> tuple[SiteSettings, ...]:
        """What operators before this one have ``offered``, and this one's sites, or with its settings added to theirs.

        Names are unique: ``KIND:LAYER``, but for channels, whose sites have their first layer's name alone.
        """

    def costs(self, network: NetworkFacts, sites: Sequence[SiteSettings], under: CostModel) -> CostModel:
        """Costs of policies by the sizes of all ``sites [B, S]``; ``under``: by the operators before this one.

        The original's setting of a site adds nothing to them.
        """
        return under

    def errors(self, network: NetworkFacts, site: SiteSettings, measures: ErrorMeasures) -> Sequence[float]:
        """Rise of the objective of the search for every setting of a site ``[K]``, all others whole; the last is 0.

        Where nothing better is known, the share of the site's size that is removed.
        """
        return [1 - size / site.sizes[-1] for size in site.sizes]

    def applier(self, scratch: nn.Module, network: NetworkFacts, sites: Sequence[SiteSettings]) -> Applier:
        """Puts settings of ``sites``, this operator's own, onto ``scratch``, a copy of the network."""
        raise NotImplementedError(f"{self.kind} has no sites of its own")

    @abstractmethod
    def record(self, network: NetworkFacts, site: SiteSettings, setting: Setting) -> PolicySetting | None:
        """What policy.json says of a setting; None where it is not one of this operator's."""

    @abstractmethod
    def read(self, name: str, entry: Mapping[str, Any]) -> PolicySetting:
        """The setting of the site ``name`` out of plain values, every one of them checked. Raises PolicyError."""

    def apply(self, model: nn.Module, network: NetworkFacts, settings: Mapping[str, PolicySetting]) -> None:
        """Apply what policy.json says of this operator's sites to ``model``, a copy of the network.

        Raises PolicyError where the network has no such site.
        """
        raise NotImplementedError(f"{self.kind} has no sites of its own")

    def hold(self, model: nn.Module, settings: Mapping[str, PolicySetting]) -> None:
        """Bring a network in training back to its settings, in place: called after every step of the optimiser.

        Only operators whose settings say something of the weights' values need it.
        """
        return


class ColumnCosts:
    """Costs of some columns of the sizes ``[B, S]``: of one operator's sites among those of several."""

    def __init__(self, model: CostModel, columns: Sequence[int]) -> None:
        self._model, self._columns = model, list(columns)

    def costs(self, sizes: Any) -> Mapping[str, Any]:
        """Costs ``[B]`` by resource of ``sizes [B, S]``."""
        return self._model.costs(np.atleast_2d(np.asarray(sizes, np.int64))[:, self._columns])


def whole_number(name: str, entry: Mapping[str, Any], key: str, least: int = 0) -> int:
    """A whole number of a site's entry in policy.json. Raises PolicyError for anything else, True and 1.0 among it."""
    value = entry.get(key)
    if type(value) is not int or value < least:
        raise PolicyError(f"site {name!r} needs a whole number of at least {least} for {key}, but has {value!r}.")
    return value
