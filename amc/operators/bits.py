"""Bits of weights: a setting is the number of bits of a layer's weights.

Every convolution and linear layer is a site. Its weights become integers with one scale per output channel
(`amc.operators.quantisation`), in model.onnx too (`amc.operators.weights_file`). A runtime computes with the float
numbers that they stand for, so activations are not changed, and the network's outputs are those of the quantised
weights, to float32's rounding. What is saved is bytes, not time.

The order of operators matters: weights are re-solved for the widths first, then quantised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from amc.errors import ConfigError, ExportError, PolicyError
from amc.graph.channels import CONVS, TRANSPOSED, Kept
from amc.graph.sites import Graph
from amc.operators.operator import (
    Applier,
    CompressionOperator,
    ErrorMeasures,
    NetworkFacts,
    PolicySetting,
    Restriction,
    SettingBounds,
    Solved,
    whole_number,
)
from amc.operators.quantisation import quantised
from amc.operators.rounding import RoundedWeights
from amc.operators.weights_file import OPSET, find_weights, quantised_records, write_weights
from amc.space.file_size import FileLayout, TensorRecords, present
from amc.space.resources import CostModel, Costs
from amc.space.sites import Floats, Ints, Setting, SiteSettings

FLOAT = 32
"""Bits of the original's weights."""


@dataclass(frozen=True)
class BitsSetting:
    """The entry in a policy for the weights of a layer.

    >>> BitsSetting(4).to_json()
    {'kind': 'bits', 'bits': 4, 'of': 32}
    """

    kind: ClassVar[str] = "bits"
    bits: int

    @property
    def size(self) -> int:
        """The bits."""
        return self.bits

    @property
    def of(self) -> int:
        """The original's bits."""
        return FLOAT

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "bits": self.bits, "of": self.of}


class Bits(CompressionOperator):
    """Fewer bits for the weights of convolutions and linear layers."""

    kind = "bits"
    summary = "4 or 8 bits for the weights of a layer, with one scale per output channel"
    reference = "Wang et al. 2019, arXiv:1811.08886; Nagel et al. 2021, arXiv:2106.08295"
    proved = frozenset(["size"])

    def sites(
        self, network: NetworkFacts, bounds: SettingBounds, offered: tuple[SiteSettings, ...]
    ) -> tuple[SiteSettings, ...]:
        """One site per layer whose weights take fewer bytes as integers. Raises ConfigError for impossible bits."""
        layout = network.layout
        if layout is None:
            return offered
        least = layout.least_bits
        asked = bounds.bits if bounds.bits is not None else [bits for bits in OPSET if bits >= least]
        for bits in asked:
            if bits < least:
                raise ConfigError(
                    f"--bits {bits} needs ONNX opset {OPSET[bits]}, but the network's file has an older one, which is "
                    f"kept: leave {bits} out, or give a file of opset {OPSET[bits]}."
                )
        settings = (*sorted({*asked}), FLOAT)
        removable = {site.name for site in offered if site.sizes[0] == 0}
        groups = network.graph.sites
        inside = {
            layer: groups[branch.site].name
            for branch in layout.branches
            if groups[branch.site].name in removable
            for layer in branch.layers
        }
        layers = [layer for layer in layout.weights if _saves(network, layer, max(asked))]
        return (
            *offered,
            *(
                SiteSettings(f"{self.kind}:{layer}", settings, settings, (self.kind,), inside.get(layer))
                for layer in layers
            ),
        )

    def costs(self, network: NetworkFacts, sites: Sequence[SiteSettings], under: CostModel) -> CostModel:
        """The exact size of the file for widths and bits together. Other costs are those ``under`` it."""
        return BitsCosts(network, sites, under) if network.layout else under

    def errors(self, network: NetworkFacts, site: SiteSettings, measures: ErrorMeasures) -> Sequence[float]:
        """The rounding errors of the weights, times the sensitivity to errors of the layer."""
        layer = layer_of(site.name)
        module: Any = network.model.get_submodule(layer)
        axis = output_axis(module)
        bits = [bits_of(setting) for setting in site.settings[:-1]]
        return [*(measures.changing_weights(layer, quantised(module.weight, own, axis)) for own in bits), 0.0]

    def applier(self, scratch: nn.Module, network: NetworkFacts, sites: Sequence[SiteSettings]) -> Applier:
        """An applier that quantises the weights of ``scratch``."""
        return BitsApplier(scratch, [layer_of(site.name) for site in sites])

    def restrictions(self, sites: Sequence[SiteSettings], settings: Sequence[Setting]) -> Mapping[str, Restriction]:
        """Rounding by least squares (`amc.operators.rounding`)."""
        chosen = zip(sites, settings, strict=True)
        return {layer_of(site.name): RoundedWeights(bits_of(own)) for site, own in chosen if own != FLOAT}

    def record(self, network: NetworkFacts, site: SiteSettings, setting: Setting) -> PolicySetting | None:
        """The bits."""
        return BitsSetting(bits_of(setting))

    def read(self, name: str, entry: Mapping[str, Any]) -> PolicySetting:
        """Read the bits, and check the original's."""
        bits, of = (whole_number(name, entry, key) for key in ("bits", "of"))
        if bits not in (*OPSET, FLOAT) or of != FLOAT:
            raise PolicyError(f"site {name!r} has {bits} of {of} bits, but must have 4, 8 or 32 of 32.")
        return BitsSetting(bits)

    def apply(self, model: nn.Module, network: NetworkFacts, settings: Mapping[str, PolicySetting]) -> None:
        """Quantise the weights of ``model``."""
        for module, bits in _modules(model, settings):
            module.weight = nn.Parameter(quantised(module.weight, bits, output_axis(module)))

    def hold(self, model: nn.Module, settings: Mapping[str, PolicySetting]) -> None:
        """Quantise the weights in place."""
        with torch.no_grad():
            for module, bits in _modules(model, settings):
                module.weight.copy_(quantised(module.weight, bits, output_axis(module)))

    def trained_straight_through(self, settings: Mapping[str, PolicySetting]) -> Collection[str]:
        """The weights of quantised layers."""
        return [f"{layer_of(name)}.weight" for name, setting in settings.items() if setting.size < FLOAT]

    def write(
        self, proto: Any, model: nn.Module, settings: Mapping[str, PolicySetting], removed: Collection[str]
    ) -> None:
        """Store the weights as integers."""
        bits = {layer_of(name): setting.size for name, setting in settings.items() if setting.size < FLOAT}
        places = find_weights(proto, model)
        missing = bits.keys() - places.keys() - set(removed)
        if missing:
            raise ExportError(f"the weights of {min(missing)} are not found in the ONNX file: leave out its bits.")
        write_weights(proto, places, {layer: own for layer, own in bits.items() if layer in places})


class BitsApplier:
    """Quantises the weights of one scratch network."""

    restores = False

    def __init__(self, scratch: nn.Module, layers: Sequence[str]) -> None:
        self._modules: list[Any] = [scratch.get_submodule(layer) for layer in layers]

    def kept(self, settings: Sequence[Setting]) -> Kept | None:
        """No channels are removed."""
        return None

    def apply(self, settings: Sequence[Setting], solved: Solved) -> None:
        """Replace the weights by quantised ones."""
        for module, setting in zip(self._modules, settings, strict=True):
            if setting != FLOAT:
                weight = quantised(module.weight, bits_of(setting), output_axis(module))
                module.weight = nn.Parameter(weight, requires_grad=False)

    def finish(self, model: nn.Module, settings: Sequence[Setting]) -> None:
        """Nothing: the weights are quantised."""


class BitsCosts:
    """The costs ``under`` the bits of weights, with the exact size of the file.

    The size is not a sum over sites: a tensor's bytes are the product of its widths and its bits.
    """

    def __init__(self, network: NetworkFacts, sites: Sequence[SiteSettings], under: CostModel) -> None:
        assert network.layout is not None
        self._under, self._resources = under, network.resources
        self._widths = WidthColumns(network.graph, sites)
        own = [(column, site) for column, site in enumerate(sites) if site.operators[0] == Bits.kind]
        self._columns = [column for column, _ in own]
        layers = [layer_of(site.name) for _, site in own]
        self._saved = SavedBytes(network.layout, layers, len(network.graph.sites))

    def costs(self, sizes: ArrayLike) -> Mapping[str, Floats]:
        """Costs ``[B]`` by resource of ``sizes [B, S]``."""
        sizes = np.atleast_2d(np.asarray(sizes, np.int64))
        found = self._under.costs(sizes)
        ways = {resource: partial(found.__getitem__, resource) for resource in found}
        return Costs({**ways, "size": partial(self._size, found, sizes)})

    def _size(self, found: Mapping[str, Floats], sizes: Ints) -> Floats:
        """An operator under this one may have changed the size, so the difference is added."""
        widths, resources = self._widths(sizes), self._resources
        changed = -self._saved(widths, sizes[:, self._columns])
        return found["size"] + (resources.file_size(widths, changed) - resources.file_size(widths))


class WidthColumns:
    """Finds the widths ``[B, G]`` of all channel groups in the sizes ``[B, S]`` of all sites."""

    def __init__(self, graph: Graph, sites: Sequence[SiteSettings]) -> None:
        self._columns = [column for column, site in enumerate(sites) if site.operators[0] == "channels"]
        self._full = np.array([group.channels for group in graph.sites], np.int64)

    def __call__(self, sizes: Ints) -> Ints:
        """The widths; those of the original if they are not searched."""
        return sizes[:, self._columns] if self._columns else np.repeat(self._full[None], len(sizes), 0)


class SavedBytes:
    """Bytes that integers save in the file: exact, for all widths."""

    def __init__(self, layout: FileLayout, layers: Sequence[str], groups: int) -> None:
        """``groups`` is the number of channel groups."""
        stored = {tensor.name: tensor for tensor in layout.tensors}
        places = [layout.weights[layer] for layer in layers]
        removed_with = {name: branch.site for branch in layout.branches for name in branch.tensors}
        self._branch = np.array([removed_with.get(place.tensor, -1) for place in places], np.int64)
        self._float = TensorRecords([stored[place.tensor] for place in places], groups)
        self._integers: dict[int, tuple[TensorRecords, TensorRecords, Ints]] = {}
        for bits in OPSET:
            made = [quantised_records(stored[place.tensor], place.axis, bits) for place in places]
            integers, scales = (TensorRecords([pair[k] for pair, _ in made], groups) for k in (0, 1))
            self._integers[bits] = integers, scales, np.array([rest for _, rest in made], np.int64)

    def __call__(self, widths: Ints, bits: Ints) -> Ints:
        """Bytes ``[B]`` for ``widths [B, G]`` and ``bits [B, L]`` of the layers."""
        whole = self._float.bytes(self._float.dims(widths))
        saved = np.zeros_like(whole)
        for own, (integers, scales, rest) in self._integers.items():
            if (bits == own).any():
                dims = integers.dims(widths), scales.dims(widths)
                taken = integers.bytes(dims[0]) + scales.bytes(dims[1]) + rest
                saved += np.where(bits == own, np.maximum(0, whole - taken), 0)
        found: Ints = (saved * present(widths, self._branch)).sum(1)
        return found


def _saves(network: NetworkFacts, layer: str, bits: int) -> bool:
    """Whether a layer of the original takes fewer bytes in ``bits``."""
    assert network.layout is not None
    widths = np.array([[group.channels for group in network.graph.sites]], np.int64)
    saved = SavedBytes(network.layout, [layer], len(network.graph.sites))
    return bool(saved(widths, np.array([[bits]]))[0] > 0)


def layer_of(name: str) -> str:
    """The layer of a site.

    >>> layer_of("bits:layer1.0.conv1")
    'layer1.0.conv1'
    """
    return name.partition(":")[2]


def bits_of(setting: Setting) -> int:
    """The bits of a setting. Raises TypeError for another operator's setting."""
    if not isinstance(setting, int):
        raise TypeError(f"{setting!r} is not a number of bits")
    return setting


def output_axis(module: nn.Module) -> int:
    """The dimension of the output channels in a module's weights.

    >>> output_axis(nn.Linear(2, 3)), output_axis(nn.ConvTranspose2d(2, 3, 1))
    (0, 1)
    """
    return 1 if isinstance(module, TRANSPOSED) else 0


def _modules(model: nn.Module, settings: Mapping[str, PolicySetting]) -> list[tuple[Any, int]]:
    """The modules whose weights are quantised, and their bits. Raises PolicyError."""
    found: list[tuple[Any, int]] = []
    for name, setting in settings.items():
        try:
            module = model.get_submodule(layer_of(name))
        except AttributeError:
            module = None
        if not isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)):
            raise PolicyError(f"the policy's site '{name}' is not a layer of this network.")
        if setting.size < FLOAT:
            found.append((module, setting.size))
    return found
