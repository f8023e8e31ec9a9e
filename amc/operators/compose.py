"""Combine several operators on one network: one list of sites, one cost model, one applier of policies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from amc.graph.channels import Kept
from amc.operators.operator import (
    Applier,
    CompressionOperator,
    NetworkFacts,
    PolicySetting,
    Restriction,
    SettingBounds,
    Solved,
)
from amc.operators.registry import OPERATORS, Operators, operator_of, owner_of, with_kinds
from amc.space.resources import CostModel
from amc.space.sites import Choice, Floats, Setting, SiteSettings


def offered_sites(
    network: NetworkFacts, bounds: SettingBounds, operators: Operators = OPERATORS
) -> tuple[SiteSettings, ...]:
    """The sites of all operators, in the order of the operators."""
    found: tuple[SiteSettings, ...] = ()
    for operator in operators:
        found = operator.sites(network, bounds, found)
    return found


def cost_model(network: NetworkFacts, sites: Sequence[SiteSettings], operators: Operators = OPERATORS) -> CostModel:
    """The exact cost model of all operators, for the sizes ``[B, S]`` of all sites."""
    found: CostModel = _OriginalCosts(network)
    for operator in operators:
        found = operator.costs(network, sites, found)
    return found


def unproved_savings(sites: Sequence[SiteSettings], costs: CostModel, operators: Operators) -> dict[str, set[str]]:
    """By operator, the resources that its settings change but that model.onnx cannot prove (see `proved`)."""
    original, found = np.array([[site.sizes[-1] for site in sites]]), dict[str, set[str]]()
    whole = costs.costs(original)
    for column, site in enumerate(sites):
        rows = np.repeat(original, len(site.sizes), 0)
        rows[:, column] = site.sizes
        changed = {name for name, values in costs.costs(rows).items() if (values != whole[name][0]).any()}
        proved = frozenset[str]().union(*(operator_of(kind, operators).proved for kind in site.operators))
        if changed - proved:
            found.setdefault(site.operators[0], set()).update(changed - proved)
    return found


def recorded_settings(
    network: NetworkFacts, sites: Sequence[SiteSettings], choice: Choice, operators: Operators = OPERATORS
) -> dict[str, PolicySetting]:
    """The entries of policy.json for a policy, by site. ``network`` must be calibrated."""
    return {
        site.name: _recorded(network, site, setting, operators) for site, setting in zip(sites, choice, strict=True)
    }


def _recorded(network: NetworkFacts, site: SiteSettings, setting: Setting, operators: Operators) -> PolicySetting:
    """The entry by the operator of a setting; operators that added settings are tried in reverse order."""
    for kind in reversed(site.operators):
        found = operator_of(kind, operators).record(network, site, setting)
        if found is not None:
            return found
    raise ValueError(f"no operator of site {site.name!r} knows its setting {setting!r}")


def apply_settings(
    model: nn.Module, network: NetworkFacts, settings: Mapping[str, PolicySetting], operators: Operators = OPERATORS
) -> None:
    """Apply a policy's settings to ``model``, a copy of the network. Raises PolicyError."""
    for operator, own in _by_owner(settings, operators):
        operator.apply(model, network, own)


def hold_settings(model: nn.Module, settings: Mapping[str, PolicySetting], operators: Operators = OPERATORS) -> None:
    """Restore a policy's settings in a network that is being trained."""
    for operator, own in _by_owner(settings, operators):
        operator.hold(model, own)


def straight_through(settings: Mapping[str, PolicySetting], operators: Operators = OPERATORS) -> list[str]:
    """Names of the parameters that are trained by the straight-through estimator."""
    return [name for operator, own in _by_owner(settings, operators) for name in operator.trained_straight_through(own)]


def write_settings(
    proto: Any,
    model: nn.Module,
    settings: Mapping[str, PolicySetting],
    removed: Collection[str],
    operators: Operators = OPERATORS,
) -> None:
    """Store a policy's settings in the exported ONNX model of ``model``; layers ``removed`` are not in it."""
    for operator, own in _by_owner(settings, operators):
        operator.write(proto, model, own, removed)


def needs_writing(settings: Mapping[str, PolicySetting], operators: Operators = OPERATORS) -> bool:
    """Whether some of the settings are stored otherwise in an ONNX file than in torch.

    >>> needs_writing({})
    False
    """
    return any(type(operator).write is not CompressionOperator.write for operator, _ in _by_owner(settings, operators))


def needs_holding(operators: Operators) -> bool:
    """Whether training would undo the settings of one of these operators.

    >>> needs_holding(OPERATORS)
    False
    """
    return any(type(operator).hold is not CompressionOperator.hold for operator in operators)


def _by_owner(
    settings: Mapping[str, PolicySetting], operators: Operators
) -> Iterator[tuple[CompressionOperator, dict[str, PolicySetting]]]:
    """Yield the operators that apply a policy's settings, in order, with their settings. Raises PolicyError."""
    by_owner: dict[str, dict[str, PolicySetting]] = {}
    for name, setting in settings.items():
        owner = owner_of(operator_of(setting.kind, operators), operators)
        by_owner.setdefault(owner.kind, {})[name] = setting
    for operator in with_kinds(by_owner, operators):
        if operator.kind in by_owner:
            yield operator, by_owner[operator.kind]


@dataclass(frozen=True)
class _Part:
    """One operator at work on a scratch network."""

    operator: CompressionOperator
    places: list[int]
    """The indices of its sites in a choice."""
    sites: list[SiteSettings]
    applier: Applier

    def settings(self, choice: Choice) -> list[Setting]:
        """The settings of its sites."""
        return [choice[place] for place in self.places]


class PolicyApplier:
    """Applies policies to one scratch network, one after another."""

    def __init__(
        self,
        scratch: nn.Module,
        network: NetworkFacts,
        sites: Sequence[SiteSettings],
        operators: Operators = OPERATORS,
    ) -> None:
        """``scratch`` is modified and must not be shared. ``network`` must be calibrated."""
        self._groups = network.graph.sites
        self._restored = _Tensors(scratch)
        self._cutting: list[_Part] = []
        self._others: list[_Part] = []
        for operator in operators:
            own = [place for place, site in enumerate(sites) if site.operators[0] == operator.kind]
            if own:
                parts = self._cutting if operator.cuts else self._others
                mine = [sites[place] for place in own]
                parts.append(_Part(operator, own, mine, operator.applier(scratch, network, mine)))
        self._alone = len(self._parts) == 1 and self._parts[0].applier.restores

    @property
    def _parts(self) -> list[_Part]:
        return [*self._cutting, *self._others]

    def kept(self, choice: Choice) -> Kept:
        """The kept channels of every group of the graph, ascending."""
        for part in self._parts:
            kept = part.applier.kept(part.settings(choice))
            if kept is not None:
                return kept
        return [np.arange(group.channels) for group in self._groups]

    def restrictions(self, choice: Choice) -> dict[str, Restriction]:
        """By layer, how a policy restricts its weights (`CompressionOperator.restrictions`)."""
        found: dict[str, Restriction] = {}
        for part in self._others:
            found |= part.operator.restrictions(part.sites, part.settings(choice))
        return found

    def apply(self, choice: Choice, solved: Solved | None = None) -> None:
        """Apply a policy to the scratch network; tensors that reconstruction has ``solved`` replace the original's."""
        self.cut(choice, solved)
        self.complete(choice)

    def cut(self, choice: Choice, solved: Solved | None = None) -> None:
        """Apply the operators that remove channels. The remaining weights may then be re-solved, before `complete`."""
        if not self._alone:
            self._restored.put_back()
        for part in self._cutting:
            part.applier.apply(part.settings(choice), solved or {})

    def complete(self, choice: Choice) -> None:
        """Apply all other operators to the current weights."""
        for part in self._others:
            part.applier.apply(part.settings(choice), {})

    def finish(self, model: nn.Module, choice: Choice) -> None:
        """Prepare a copy of the scratch network for training."""
        for part in self._parts:
            part.applier.finish(model, part.settings(choice))


class _Tensors:
    """References to a module's tensors, to restore them: operators replace tensors and do not write into them."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]

    def put_back(self) -> None:
        """Restore the tensors."""
        for module, parameters, buffers in self._held:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


class _OriginalCosts:
    """The original's costs for all policies: the base to which operators add theirs."""

    def __init__(self, network: NetworkFacts) -> None:
        self._network = network

    def costs(self, sizes: Any) -> Mapping[str, Floats]:
        widths = [group.channels for group in self._network.graph.sites]
        count = len(np.atleast_2d(np.asarray(sizes)))
        return {name: np.full(count, value) for name, value in self._network.resources.cost(widths).items()}
