"""Channel pruning: a setting is the width, the number of output channels that coupled layers keep.

A criterion ranks the channels (`amc.importance`), and a width keeps the most important ones. So a wider setting keeps
all channels of a narrower one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from amc.errors import PolicyError
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.graph.surgery import ChannelCutter, zero_removed
from amc.operators.operator import (
    Applier,
    ColumnCosts,
    CompressionOperator,
    ErrorMeasures,
    NetworkFacts,
    PolicySetting,
    SettingBounds,
    Solved,
    whole_number,
)
from amc.space.resources import CostModel
from amc.space.sites import Choice, Ints, Setting, SiteSettings, numeric_sites


@dataclass(frozen=True)
class ChannelSetting:
    """The entry in a policy for a channel group."""

    kind: ClassVar[str] = "channels"
    width: int
    of: int
    kept: tuple[int, ...]
    """The kept channels, ascending."""

    @property
    def size(self) -> int:
        """The width."""
        return self.width

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "width": self.width, "of": self.of, "kept": list(self.kept)}


class Channels(CompressionOperator):
    """Removes output channels of coupled layers, and the inputs of layers that read them."""

    kind = "channels"
    summary = "output channels of coupled layers"
    reference = "Li et al. 2017, arXiv:1608.08710; Fang et al. 2023, arXiv:2301.12900"
    cuts = True
    proved = frozenset(["macs", "params", "size", "memory"])

    def sites(
        self, network: NetworkFacts, bounds: SettingBounds, offered: tuple[SiteSettings, ...]
    ) -> tuple[SiteSettings, ...]:
        """One site per channel group of the graph, in forward order."""
        groups = network.graph.sites
        widths = [legal_widths(group.channels, bounds.min_keep, bounds.step) for group in groups]
        return (*offered, *numeric_sites([group.name for group in groups], widths))

    def costs(self, network: NetworkFacts, sites: Sequence[SiteSettings], under: CostModel) -> CostModel:
        """`amc.space.resources.ResourceModel`."""
        columns = [column for column, site in enumerate(sites) if site.operators[0] == self.kind]
        return network.resources if len(columns) == len(sites) else ColumnCosts(network.resources, columns)

    def errors(self, network: NetworkFacts, site: SiteSettings, measures: ErrorMeasures) -> Sequence[float]:
        """The variance that re-solving leaves unexplained, times the sensitivity of the layers that read the group."""
        group = [group.name for group in network.graph.sites].index(site.name)
        errors = measures.removing_channels(group)
        return [float(errors[width_of(setting)]) for setting in site.settings]

    def applier(self, scratch: nn.Module, network: NetworkFacts, sites: Sequence[SiteSettings]) -> Applier:
        """An applier that cuts the tensors of ``scratch`` (`amc.graph.surgery`)."""
        return ChannelApplier(scratch, network.graph, network.orders)

    def record(self, network: NetworkFacts, site: SiteSettings, setting: Setting) -> PolicySetting | None:
        """The entry with the width and the kept channels."""
        group = [group.name for group in network.graph.sites].index(site.name)
        kept = kept_channels(network.orders[group : group + 1], [setting])[0]
        return ChannelSetting(len(kept), site.sizes[-1], tuple(kept.tolist()))

    def read(self, name: str, entry: Mapping[str, Any]) -> PolicySetting:
        """Read width, original width and kept channels."""
        width, of = (whole_number(name, entry, key, least=1) for key in ("width", "of"))
        kept = entry.get("kept")
        if not isinstance(kept, list) or any(type(channel) is not int for channel in kept):
            raise PolicyError(f"site {name!r} needs a list of whole numbers for kept.")
        if len(kept) != width or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= of:
            raise PolicyError(f"site {name!r} keeps {width} of {of} channels, but its list of channels does not match.")
        return ChannelSetting(width, of, tuple(kept))

    def apply(self, model: nn.Module, network: NetworkFacts, settings: Mapping[str, PolicySetting]) -> None:
        """Cut the tensors of ``model`` to the channels that the settings list."""
        ChannelCutter(model, network.graph.layers).cut(listed_channels(network.graph, settings))


class ChannelApplier:
    """Cuts the tensors of one scratch network to the widths of a policy."""

    restores = True

    def __init__(self, scratch: nn.Module, graph: Graph, orders: Sequence[Ints]) -> None:
        self._graph, self._orders = graph, orders
        self._cutter = ChannelCutter(scratch, graph.layers)

    def kept(self, settings: Sequence[Setting]) -> Kept:
        """The most important channels of every group, ascending."""
        return kept_channels(self._orders, settings)

    def apply(self, settings: Sequence[Setting], solved: Solved) -> None:
        """Cut every tensor; ``solved`` tensors replace the original's."""
        self._cutter.cut(self.kept(settings), solved)

    def finish(self, model: nn.Module, settings: Sequence[Setting]) -> None:
        """Set the outputs of layers without inputs to zero permanently."""
        zero_removed(model, self._graph.layers, self.kept(settings))


def kept_channels(orders: Sequence[Ints], settings: Sequence[Setting]) -> Kept:
    """The kept channels of every group, ascending: the first ones of its order ``[C]``, as many as the setting.

    >>> kept_channels([np.array([3, 0, 2, 1])], [2])
    [array([0, 3])]
    """
    return [np.sort(order[: width_of(setting)]) for order, setting in zip(orders, settings, strict=True)]


def listed_channels(graph: Graph, settings: Mapping[str, PolicySetting]) -> Kept:
    """The channels that a policy keeps in every group of the graph; groups that it does not name keep all.

    Raises PolicyError for a channel group that the graph does not have.
    """
    groups = {group.name: group.channels for group in graph.sites}
    listed = {name: setting for name, setting in settings.items() if isinstance(setting, ChannelSetting)}
    for name, setting in listed.items():
        if groups.get(name) != setting.of:
            raise PolicyError(f"the policy's site '{name}' with {setting.of} channels is not in this network.")
    return [
        np.array(listed[name].kept if name in listed else range(channels), np.int64)
        for name, channels in groups.items()
    ]


def legal_widths(channels: int, min_keep: float, step: int | None = None) -> tuple[int, ...]:
    """The legal widths of a site, ascending: multiples of ``step`` from ``min_keep`` up, and the full width.

    The default ``step`` is 8 for at least 64 channels, 4 for at least 16, and 1 below. ONNX Runtime and training on a
    CPU are fast at multiples of their vector widths.

    >>> legal_widths(16, min_keep=0.3)
    (8, 12, 16)
    """
    step = step or (8 if channels >= 64 else 4 if channels >= 16 else 1)
    least = max(1, min_keep * channels - 1e-9)
    widths = {w for w in range(step, channels, step) if w >= least}
    return (*sorted(widths), channels)


def all_widths(graph: Graph) -> tuple[SiteSettings, ...]:
    """One site per channel group of the graph, with all widths from 0."""
    return numeric_sites([group.name for group in graph.sites], [range(group.channels + 1) for group in graph.sites])


def width_of(setting: Setting) -> int:
    """The number of channels that a setting keeps. Raises TypeError for another operator's setting."""
    if not isinstance(setting, int):
        raise TypeError(f"{setting!r} is not a number of channels")
    return setting


def widths_of(choice: Choice | Sequence[Setting]) -> tuple[int, ...]:
    """The widths of a policy whose sites are all channel groups."""
    return tuple(width_of(setting) for setting in choice)
