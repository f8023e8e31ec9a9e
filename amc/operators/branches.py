"""Removal of whole residual branches, and their removal from an ONNX file.

A branch reads the residual stream and is added to it: ``x + f(x)``. At width 0 of the site inside it, f is removed. The
operator `channels` cannot do that: it keeps at least one channel per layer, and a runtime spends time on every
operator, however narrow, above all in 8 bits. In torch, which runs the network's own code, one zeroed channel stays
(`amc.graph.surgery`). In the ONNX file, the addition becomes an Identity, which runtimes skip, and the rest of the
branch is removed.

This operator has no sites of its own: it adds the setting 0 to channel groups. A removed branch has no width, so
separate sites would describe the same network by many policies. Cost and error of the setting are those of width 0, so
exact costs and exact allocation need no special case.

Branches are found in the file: all readers of the site's channels lead to an addition, and no other node needs the
layers that produce the channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx

from amc.errors import PolicyError
from amc.graph.channels import Kept, Layer
from amc.graph.sites import Graph, Site, consumers
from amc.operators.channels import ChannelSetting
from amc.operators.operator import CompressionOperator, NetworkFacts, PolicySetting, SettingBounds, whole_number
from amc.space.file_size import Branch
from amc.space.sites import Setting, SiteSettings

_WEIGHTY = frozenset(["Conv", "Gemm", "MatMul"])


_REMOVED = 0
"""The setting of a removed branch: no channel is kept."""


@dataclass(frozen=True)
class RemovedBranch(ChannelSetting):
    """The entry in a policy for a removed branch: a channel group that keeps nothing."""

    kind: ClassVar[str] = "branches"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "of": self.of}


class Branches(CompressionOperator):
    """Removes whole residual branches."""

    kind = "branches"
    summary = "removal of whole residual branches"
    reference = "Veit et al. 2016, arXiv:1605.06431"
    extends = "channels"
    cuts = True
    proved = frozenset(["macs", "params", "size", "memory", "branches"])

    def sites(
        self, network: NetworkFacts, bounds: SettingBounds, offered: tuple[SiteSettings, ...]
    ) -> tuple[SiteSettings, ...]:
        """The offered sites, with setting 0 added to channel groups in removable branches."""
        branches = network.layout.branches if network.layout else ()
        removable = {network.graph.sites[branch.site].name for branch in branches}
        return tuple(
            replace(
                site,
                settings=(_REMOVED, *site.settings),
                sizes=(_REMOVED, *site.sizes),
                operators=(*site.operators, self.kind),
            )
            if site.operators[0] == self.extends and site.name in removable
            else site
            for site in offered
        )

    def record(self, network: NetworkFacts, site: SiteSettings, setting: Setting) -> PolicySetting | None:
        """The entry for a removed branch; None for a width."""
        return RemovedBranch(_REMOVED, site.sizes[-1], ()) if setting == _REMOVED else None

    def read(self, name: str, entry: Mapping[str, Any]) -> PolicySetting:
        """Read the original number of channels."""
        return RemovedBranch(_REMOVED, whole_number(name, entry, "of", least=1), ())


def find_branches(proto: Any, graph: Graph) -> tuple[Branch, ...]:
    """The removable branches of a network in its ONNX file, in the order of their sites, without shared nodes."""
    if _has_subgraphs(proto):  # a node's inputs do not show what its subgraphs read
        return ()
    file, found = _File(proto, graph), list[Branch]()
    for number, site in enumerate(graph.sites):
        branch = file.branch(number, site, list(consumers(graph, number)))
        if branch is not None and not any(branch.dead & other.dead for other in found):
            found.append(branch)
    return tuple(found)


def removed(proto: Any, graph: Graph, kept: Kept) -> tuple[Branch, ...]:
    """The branches of the sites that keep nothing. Raises PolicyError if such a site is not in a removable branch."""
    empty = {number for number, channels in enumerate(kept) if not len(channels)}
    found = tuple(branch for branch in find_branches(proto, graph) if branch.site in empty) if empty else ()
    for number in sorted(empty - {branch.site for branch in found}):
        raise PolicyError(f"'{graph.sites[number].name}' keeps no channels, but is not in a removable residual branch.")
    return found


def remove(proto: Any, branches: Iterable[Branch]) -> None:
    """Remove branches from the ONNX model in which they were found."""
    graph, branches = proto.graph, list(branches)
    if not branches:
        return
    dead = frozenset[str]().union(*(b.dead for b in branches))
    tensors = frozenset[str]().union(*(b.tensors for b in branches))
    bypassed = {output: source for b in branches for output, source in b.bypassed.items()}
    for node in graph.node:
        if node.output[0] in bypassed:
            node.CopyFrom(_identity(node, bypassed[node.output[0]]))
    keep_only(graph.node, [n for n in graph.node if n.output[0] not in dead])
    keep_only(graph.initializer, [t for t in graph.initializer if t.name not in tensors])


def skip_identities(proto: Any) -> None:
    """Remove Identity nodes by connecting their readers to their inputs, since quantisers treat them as operators."""
    graph, outputs = proto.graph, {value.name for value in proto.graph.output}
    known: dict[str, str] = {}
    if _has_subgraphs(proto):
        return
    for node in graph.node:
        node.input[:] = [known.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            known[node.output[0]] = node.input[0]
    keep_only(graph.node, [n for n in graph.node if n.output[0] not in known])


def owner(name: str, layers: Mapping[str, Layer]) -> Layer | None:
    """The layer of a tensor in the file, such as 'layer1.0.conv1.weight' or the folded 'layer1.0.conv1.weight_bias'."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        layer = layers.get(".".join(parts[:length]))
        if layer is not None:
            return layer
    return None


def _has_subgraphs(proto: Any) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for node in proto.graph.node for attribute in node.attribute)


def keep_only(field: Any, messages: list[Any]) -> None:
    """Keep only some messages of a repeated field."""
    kept = [type(m).FromString(m.SerializeToString()) for m in messages]
    del field[:]
    field.extend(kept)


def _identity(node: Any, source: str) -> Any:
    return onnx.helper.make_node("Identity", [source], [node.output[0]], name=node.name)


def record_bytes(message: Any) -> int:
    """Bytes of a message in a repeated field: tag, length and content."""
    size = int(message.ByteSize())
    return 1 + varint_bytes(size) + size


def varint_bytes(value: int) -> int:
    """Bytes of a non-negative integer as a protobuf varint."""
    return max(1, -(-value.bit_length() // 7))


class _File:
    """The nodes of an ONNX file, with producers and readers of every value."""

    def __init__(self, proto: Any, graph: Graph) -> None:
        self._nodes = list(proto.graph.node)
        self._made = {output: node for node in self._nodes for output in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in self._nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = [value.name for value in proto.graph.output]
        self._inputs = {value.name for value in proto.graph.input}
        self._layers = [x for x in graph.layers if x.has_tensors]
        weighty = {x.name: x for x in self._layers}
        self._owners = {t.name: owner(t.name, weighty) for t in proto.graph.initializer}
        self._dims = {t.name: len(t.dims) for t in proto.graph.initializer}

    def branch(self, number: int, site: Site, readers: Collection[Layer]) -> Branch | None:
        """The removable branch around a site, or None."""
        if not all(x.input is not None and bool((x.input.site == number).all()) for x in readers) or not readers:
            return None
        bypassed: dict[str, str] = {}
        for layer in readers:
            found = self._addition(layer)
            if found is None:
                return None
            addition, stream = found
            bypassed[addition] = stream
            after = self._readers.get(addition, [])
            if len(after) == 1 and after[0].op_type == "Relu" and self._is_rectified(stream):
                bypassed[after[0].output[0]] = addition
        live = self._live(bypassed)
        unused = [n for n in self._nodes if n.output[0] not in live]
        dead, own = {n.output[0] for n in unused}, {*site.layers, *(x.name for x in readers)}
        if any(n.output[0] not in dead for n in self._nodes if self._is_of(n, own)) or not live & self._inputs:
            return None
        tensors = {name for name in self._owners if self._is_read_by(name, dead)}
        shrunk = [record_bytes(self._made[o]) - record_bytes(_identity(self._made[o], s)) for o, s in bypassed.items()]
        layers = self._layers_of(tensors) - self._layers_of(self._owners.keys() - tensors)
        return Branch(
            number,
            frozenset([*layers, *(x.norm for x in self._layers if x.norm and x.name in layers)]),
            bypassed,
            frozenset(dead),
            frozenset(tensors),
            sum(record_bytes(n) for n in unused) + sum(shrunk),
        )

    def _layers_of(self, tensors: Iterable[str]) -> set[str]:
        return {layer.name for name in tensors if (layer := self._owners[name]) is not None}

    def _is_read_by(self, name: str, nodes: Collection[str]) -> bool:
        """Whether a value is read, and only by these nodes."""
        readers = self._readers.get(name, [])
        return bool(readers) and all(node.output[0] in nodes for node in readers)

    def _is_of(self, node: Any, layers: Collection[str]) -> bool:
        owners = (self._owners.get(name) for name in node.input)
        return any(layer is not None and layer.name in layers for layer in owners)

    def _addition(self, layer: Layer) -> tuple[str, str] | None:
        """The addition that is the only reader of a layer's output, and the tensor that it is added to."""
        own = [n for n in self._nodes if n.op_type in _WEIGHTY and self._is_weight(n, layer)]
        if len(own) != 1:
            return None
        value = own[0].output[0]
        while value not in self._outputs and len(self._readers.get(value, [])) == 1:
            node = self._readers[value][0]
            others = [name for name in node.input if name != value]
            if node.op_type == "Add" and len(others) == 1 and others[0] not in self._owners:
                return (node.output[0], others[0]) if not self._needs(others[0], value) else None
            if not self._is_part(node, others, layer):
                return None
            value = node.output[0]
        return None

    def _is_weight(self, node: Any, layer: Layer) -> bool:
        return any(
            self._dims.get(name, 0) > 1 and (own := self._owners[name]) is not None and own.name == layer.name
            for name in node.input
        )

    def _is_part(self, node: Any, others: Collection[str], layer: Layer) -> bool:
        """Whether a node after a zeroed layer outputs zeros. Its bias and norm are zeroed too; factors are harmless."""
        owners = [self._owners.get(name) for name in others]
        if node.op_type in ("BatchNormalization", "Add"):
            return all(own is not None and own.name in (layer.name, layer.norm) for own in owners) and bool(others)
        return node.op_type in ("Transpose", "Identity") or (
            node.op_type == "Mul" and all(name in self._owners for name in others)
        )

    def _needs(self, value: str, other: str) -> bool:
        """Whether ``value`` is computed from ``other``."""
        seen, waiting = set[str](), [value]
        while waiting:
            name = waiting.pop()
            if name == other:
                return True
            if name in self._made and name not in seen:
                waiting += self._made[name].input
            seen.add(name)
        return False

    def _live(self, bypassed: Mapping[str, str]) -> set[str]:
        """All values that the outputs need."""
        live, waiting = set[str](), list(self._outputs)
        while waiting:
            name = waiting.pop()
            if name not in live:
                live.add(name)
                node = self._made.get(name)
                if node is not None:
                    live.update(node.output)
                    waiting += [bypassed[name]] if name in bypassed else node.input
        return live

    def _is_rectified(self, value: str) -> bool:
        """Whether a value is the output of a ReLU, so that another ReLU would not change it."""
        node = self._made.get(value)
        while node is not None and node.op_type in ("MaxPool", "Identity"):
            node = self._made.get(node.input[0])
        return node is not None and node.op_type == "Relu"
