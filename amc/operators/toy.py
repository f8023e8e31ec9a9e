"""An operator to test the code above operators: coarse weights, with settings that are not numbers of anything.

A setting is a word, a pair or a share, and costs are not monotone in the order of settings. Only this file knows what
they do to a layer's weights w:

================  =====================================  =====================
setting           weights                                cost (layer's share)
================  =====================================  =====================
``"sign"``        sign(w) · mean(abs(w))                 0.25
``("round", 4)``  rounded to 4 steps of max(abs(w))      1.25
``0.5``           the smaller half is 0                  0.5
``"whole"``       w                                      1
================  =====================================  =====================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from amc.errors import PolicyError
from amc.graph.channels import Kept
from amc.operators.operator import (
    Applier,
    CompressionOperator,
    ErrorMeasures,
    NetworkFacts,
    PolicySetting,
    SettingBounds,
    Solved,
)
from amc.space.resources import CostModel
from amc.space.sites import Floats, Setting, SiteSettings, frozen_setting, ranked_site

COSTS: dict[Setting, float] = {"sign": 0.25, ("round", 4): 1.25, 0.5: 0.5, "whole": 1.0}
"""Setting → cost as a share of the layer's, in order."""


@dataclass(frozen=True)
class CoarseSetting:
    """The entry in a policy for a layer with coarse weights."""

    kind: ClassVar[str] = "coarse"
    setting: Setting

    @property
    def size(self) -> int:
        """Its position in the list, from 1."""
        return list(COSTS).index(self.setting) + 1

    @property
    def of(self) -> int:
        """The last position."""
        return len(COSTS)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"kind": self.kind, "setting": self.setting}


class CoarseWeights(CompressionOperator):
    """Coarser weights of convolutions and linear layers."""

    kind = "coarse"
    summary = "coarse weights, for tests"

    def sites(
        self, network: NetworkFacts, bounds: SettingBounds, offered: tuple[SiteSettings, ...]
    ) -> tuple[SiteSettings, ...]:
        """One site per layer with MACs."""
        return (*offered, *(ranked_site(f"{self.kind}:{name}", tuple(COSTS), self.kind) for name in _macs(network)))

    def costs(self, network: NetworkFacts, sites: Sequence[SiteSettings], under: CostModel) -> CostModel:
        """MACs: every layer changes them by its share of the original's."""
        macs, whole = _macs(network), network.graph.trace.macs
        columns = {
            column: macs[_layer(site)] / whole for column, site in enumerate(sites) if site.operators[0] == self.kind
        }
        return CoarseCosts(under, list(columns), list(columns.values()))

    def errors(self, network: NetworkFacts, site: SiteSettings, measures: ErrorMeasures) -> Sequence[float]:
        """The squared error of the weights, as a share of their squares."""
        weight = _weight(network.model, site)
        return [float((weight - coarse(weight, s)).square().sum() / weight.square().sum()) for s in site.settings]

    def applier(self, scratch: nn.Module, network: NetworkFacts, sites: Sequence[SiteSettings]) -> Applier:
        """An applier that replaces the layers' weights."""
        return _CoarseApplier(scratch, sites)

    def record(self, network: NetworkFacts, site: SiteSettings, setting: Setting) -> PolicySetting | None:
        """The setting itself."""
        return CoarseSetting(setting) if setting in COSTS else None

    def read(self, name: str, entry: Mapping[str, Any]) -> PolicySetting:
        """The setting itself."""
        try:
            setting = frozen_setting(entry.get("setting"))
        except ValueError:
            setting = ""
        if setting not in COSTS:
            raise PolicyError(f"site {name!r} has no setting {entry.get('setting')!r}.")
        return CoarseSetting(setting)

    def apply(self, model: nn.Module, network: NetworkFacts, settings: Mapping[str, PolicySetting]) -> None:
        """Replace the layers' weights."""
        for name, setting in settings.items():
            module: Any = model.get_submodule(name.removeprefix(f"{self.kind}:"))
            assert isinstance(setting, CoarseSetting)
            module.weight = nn.Parameter(coarse(module.weight.detach(), setting.setting))

    def hold(self, model: nn.Module, settings: Mapping[str, PolicySetting]) -> None:
        """Overwrite the weights of the last step with coarse ones."""
        with torch.no_grad():
            for name, setting in settings.items():
                module: Any = model.get_submodule(name.removeprefix(f"{self.kind}:"))
                assert isinstance(setting, CoarseSetting)
                module.weight.copy_(coarse(module.weight, setting.setting))


class CoarseCosts:
    """The costs ``under`` this operator, with changed MACs of some layers."""

    def __init__(self, under: CostModel, columns: Sequence[int], parts: Sequence[float]) -> None:
        """``columns`` are the layers' columns in the sizes; ``parts`` are their shares of the original's MACs."""
        self._under, self._columns, self._parts = under, list(columns), np.array(parts, np.float64)
        self._shares = np.array([0.0, *COSTS.values()])

    def costs(self, sizes: ArrayLike) -> Mapping[str, Floats]:
        """Costs ``[B]`` by resource of ``sizes [B, S]``."""
        own = np.atleast_2d(np.asarray(sizes, np.int64))[:, self._columns]
        found = self._under.costs(sizes)
        return {**found, "macs": found["macs"] * (1 + (self._shares[own] - 1) @ self._parts)}


def coarse(weight: Tensor, setting: Setting) -> Tensor:
    """The weights under a setting."""
    if setting == "sign":
        return weight.sign() * weight.abs().mean()
    if setting == 0.5:
        return weight * (weight.abs() >= weight.abs().median())
    if setting == ("round", 4):
        step = weight.abs().max().clamp(min=1e-12) / 4
        return (weight / step).round() * step
    return weight


class _CoarseApplier:
    restores = False

    def __init__(self, scratch: nn.Module, sites: Sequence[SiteSettings]) -> None:
        self._modules: list[Any] = [scratch.get_submodule(_layer(site)) for site in sites]

    def kept(self, settings: Sequence[Setting]) -> Kept | None:
        return None

    def apply(self, settings: Sequence[Setting], solved: Solved) -> None:
        for module, setting in zip(self._modules, settings, strict=True):
            module.weight = nn.Parameter(coarse(module.weight.detach(), setting), requires_grad=False)

    def finish(self, model: nn.Module, settings: Sequence[Setting]) -> None:
        return


def _macs(network: NetworkFacts) -> dict[str, float]:
    """MACs of the layers that have any."""
    return {x.name: float(x.macs) for x in network.graph.layers if x.is_conv_or_linear and x.macs}


def _layer(site: SiteSettings) -> str:
    return site.name.partition(":")[2]


def _weight(model: nn.Module, site: SiteSettings) -> Tensor:
    module: Any = model.get_submodule(_layer(site))
    weight: Tensor = module.weight
    return weight.detach()
