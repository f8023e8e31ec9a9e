"""Exact costs of policies, computed from widths without building or running a network.

Notation: S sites, B policies, T tensors, O operators; ``w [B, S]`` the widths.

==========  ===========  ==========================================================================
resource    unit         definition
==========  ===========  ==========================================================================
macs        MACs         multiply-accumulates of convolutions, linear layers and matrix products of
                         one inference at batch 1 (conv, linear and matmul in fvcore)
params      parameters   elements of the network's parameters, without buffers
size        bytes        size of model.onnx as amc exports it
memory      bytes        peak activation memory: largest size of all live tensors while an operator
                         runs, in float32 at batch 1, with element-wise operators in place, without
                         weights (an upper bound if branches are removed)
branches    branches     kept residual branches, of those that can be removed whole
==========  ===========  ==========================================================================

The length of an axis is linear in w. The number of elements of a tensor is a product of two such lengths and a
constant. The MACs of an operator are the elements of its weight times the positions where it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from amc.graph.channels import ActivationProduct, Axis, Layer, length_of
from amc.graph.sites import Graph
from amc.graph.surgery import axes_of, holder_of, own_tensors
from amc.space.sites import Floats, Ints


class Costs(Mapping[str, Floats]):
    """Costs ``[B]`` by resource, each computed on first access, since a search needs only one or two of them.

    >>> costs = Costs({"macs": lambda: np.array([2.0]), "size": lambda: 1 / 0})
    >>> costs["macs"].tolist(), sorted(costs)
    ([2.0], ['macs', 'size'])
    """

    def __init__(self, ways: Mapping[str, Callable[[], Floats]]) -> None:
        """``ways`` are functions that compute the costs."""
        self._ways, self._known = ways, dict[str, Floats]()

    def __getitem__(self, resource: str) -> Floats:
        if resource not in self._known:
            self._known[resource] = self._ways[resource]()
        return self._known[resource]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ways)

    def __len__(self) -> int:
        return len(self._ways)


class CostModel(Protocol):
    """Gives costs ``[B]`` by resource for the sizes ``[B, S]`` of policies' settings.

    A site's first setting has the least cost in every resource. Costs of the others need not be monotone.
    """

    def costs(self, sizes: ArrayLike, /) -> Mapping[str, Floats]: ...


@dataclass(frozen=True)
class Branch:
    """A residual branch that can be removed from an ONNX file (see `amc.operators.branches`)."""

    site: int
    """The channel group inside the branch; width 0 removes the branch."""
    layers: frozenset[str]
    """Names of the layers that are removed with it."""
    bypassed: Mapping[str, str]
    """Output of each node that becomes an Identity → the tensor that it is then equal to."""
    dead: frozenset[str]
    """First outputs of the removed nodes."""
    tensors: frozenset[str]
    """Names of the removed initializers."""
    bytes: int
    """Bytes by which the records of nodes become shorter."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the ONNX file: its dimensions, and the layers' axes that determine them."""

    dims: tuple[int, ...]
    axes: tuple[Axis | None, ...]
    itemsize: int
    fixed: int
    """Bytes of the tensor's record that do not depend on the policy."""
    per_group: int = 0
    """If not 0, the first dimension divided by this is also written as the ``group`` attribute of a convolution."""
    name: str = ""


@dataclass(frozen=True, eq=False)
class FileLayout:
    """The layout of the original's ONNX file."""

    total: int
    """Bytes of the file."""
    graph: int
    """Bytes of the graph in the file."""
    tensors: tuple[StoredTensor, ...]
    branches: tuple[Branch, ...] = ()
    """The removable residual branches."""


class ResourceModel:
    """Exact costs of the policies of one network. ``layout`` is needed for ``size`` and ``branches`` only."""

    def __init__(self, graph: Graph, model: nn.Module, layout: FileLayout | None = None) -> None:
        self._full = np.array([site.channels for site in graph.sites], np.int64)
        sites = len(self._full)
        self.branches = layout.branches if layout else ()
        """The residual branches that width 0 removes."""
        removed_with = {name: branch.site for branch in self.branches for name in branch.layers}
        layers = [layer for layer in graph.layers if layer.output or layer.input]
        named = [(layer.name, row) for layer in layers for row in _rows(model, layer, sites)]
        rows = [row for _, row in named]
        self._branch = np.array([removed_with.get(name, -1) for name, _ in named], np.int64)
        # float64 holds these integers exactly up to 2**53, and its products are BLAS's
        self._a = np.array([r.first[0] for r in rows], np.float64).reshape(-1, sites).T
        self._a0 = np.array([r.first[1] for r in rows], np.float64)
        self._b = np.array([r.second[0] for r in rows], np.float64).reshape(-1, sites).T
        self._b0 = np.array([r.second[1] for r in rows], np.float64)
        self._rest = np.array([r.rest for r in rows])
        self._stored = np.array([r.stored for r in rows], np.float64)
        self._positions = np.array([r.positions for r in rows], np.float64)
        total = sum(p.numel() for p in model.parameters())
        fixed_params = total - int((self._elements(self._full[None]) @ self._stored)[0])
        self._fixed_params = fixed_params
        self._fixed_macs = graph.trace.macs - int((self._elements(self._full[None]) @ self._positions)[0])
        live = np.unique(graph.trace.live, axis=0)
        self._live = live[~_dominated(live)].astype(np.float64)
        self._sizes, self._growth = graph.trace.sizes, graph.growth
        self._file = _FileSize(layout, sites, self._full) if layout else None

    def costs(self, choices: ArrayLike) -> Mapping[str, Floats]:
        """Costs ``[B]`` by resource of the widths ``choices [B, S]``."""
        w = np.atleast_2d(np.asarray(choices, np.int64))
        ways = {
            "macs": lambda: self._elements(w) @ self._positions + self._fixed_macs,
            "params": lambda: self._elements(w) @ self._stored + self._fixed_params,
            "memory": lambda: self._peak(w),
        }
        if self.branches:
            sites = [branch.site for branch in self.branches]
            ways["branches"] = lambda: (w[:, sites] > 0).sum(1).astype(np.float64)
        if self._file:
            size = self._file
            ways["size"] = lambda: size(w).astype(np.float64)
        return Costs(ways)

    def cost(self, choice: Sequence[int]) -> dict[str, float]:
        """Costs of one policy, by resource."""
        return {name: float(values[0]) for name, values in self.costs([choice]).items()}

    def _peak(self, w: Ints) -> Floats:
        left = np.maximum(w, 1)  # torch keeps one channel of a removed branch
        peak: Floats = 4 * ((self._sizes - (self._full - left) @ self._growth.T) @ self._live.T).max(1).round()
        return peak

    def _elements(self, w: Ints) -> Floats:
        widths = w.astype(np.float64)
        product: Floats = (widths @ self._a + self._a0) * (widths @ self._b + self._b0) * self._rest
        return product if w.all() else product * _present(w, self._branch)


def _present(w: Ints, branch: Ints) -> NDArray[np.bool_]:
    """Which rows exist ``[B, R]``: those outside removed branches. ``branch [R]`` is a row's branch's site, or -1."""
    left: NDArray[np.bool_] = (branch < 0) | (w[:, branch] > 0)
    return left


@dataclass(frozen=True, eq=False)
class _Row:
    """One tensor with ``first × second × rest`` elements; each of them needs ``positions`` MACs."""

    first: tuple[Ints, int]
    second: tuple[Ints, int]
    rest: int
    stored: bool
    """Whether its elements are parameters."""
    positions: int


def _rows(model: nn.Module, layer: Layer, sites: int) -> Iterator[_Row]:
    one = (np.zeros(sites, np.int64), 1)
    if isinstance(layer.kind, ActivationProduct):
        assert layer.output is not None
        yield _Row(layer.output.counts(sites), one, 1, False, layer.positions)
    if not layer.has_tensors:
        return
    tensors = own_tensors(model, layer)
    heaviest = max(tensors, key=lambda key: tensors[key].numel() * (tensors[key].ndim > 1), default="")
    for key, tensor in tensors.items():
        lines, rest = [], 1
        for axis, length in zip(axes_of(model, layer, key, tuple(tensor.shape)), tensor.shape, strict=True):
            if axis is None:
                rest *= length
            else:
                lines.append(axis.counts(sites))
        stored = key.rpartition(".")[2] in holder_of(model, layer, key)._parameters
        first, second = [*lines, one, one][:2]
        yield _Row(first, second, rest, stored, layer.positions if key == heaviest else 0)


def _dominated(live: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows are subsets of another row, and so never have the peak."""
    wide = live.astype(np.int32)
    common = wide @ wide.T
    inside = np.equal(common, wide.sum(1)[:, None])
    np.fill_diagonal(inside, False)
    dominated: NDArray[np.bool_] = inside.any(1)
    return dominated


def varint(values: ArrayLike) -> Ints:
    """Bytes of each non-negative integer as a protobuf varint.

    >>> varint([0, 127, 128]).tolist()
    [1, 1, 2]
    """
    v = np.asarray(values, np.int64)
    count = np.ones(v.shape, np.int64)
    largest = int(v.max(initial=0))
    for bits in range(7, 63, 7):
        if largest < 1 << bits:
            break
        count += v >= (1 << bits)
    return count


class _FileSize:
    """Bytes of the ONNX file: the records of tensors with their length prefixes, and a constant rest.

    T tensors have up to D dimensions; missing dimensions count as length 1 and are not written.
    """

    def __init__(self, layout: FileLayout, sites: int, full: Ints) -> None:
        tensors = [t for t in layout.tensors if any(axis is not None for axis in t.axes)]
        longest = max((len(t.dims) for t in tensors), default=1)
        self._slopes = np.zeros((sites, len(tensors), longest), np.int64)
        self._constant = np.ones((len(tensors), longest), np.int64)
        self._written = np.zeros((len(tensors), longest), np.int64)
        for row, tensor in enumerate(tensors):
            for column, (axis, dim) in enumerate(zip(tensor.axes, tensor.dims, strict=True)):
                self._slopes[:, row, column], self._constant[row, column] = length_of(axis, dim, sites)
                self._written[row, column] = 1
        self._itemsize = np.array([t.itemsize for t in tensors], np.int64)
        self._fixed = np.array([t.fixed for t in tensors], np.int64)
        self._per_group = np.array([t.per_group for t in tensors], np.int64)
        removed_with = {name: branch.site for branch in layout.branches for name in branch.tensors}
        self._branch = np.array([removed_with.get(t.name, -1) for t in tensors], np.int64)
        self._branches = [branch.site for branch in layout.branches]
        self._saved = np.array([_fixed_bytes(branch, layout, tensors) for branch in layout.branches], np.int64)
        inside = int(self._changing(full[None])[0])
        self._graph_rest = layout.graph - inside
        self._rest = layout.total - layout.graph - int(varint(layout.graph))

    def _changing(self, w: Ints) -> Ints:
        """Bytes ``[B]`` of the tensors that depend on the policy."""
        dims = np.tensordot(w, self._slopes, 1) + self._constant  # [B, T, D]
        raw = dims.prod(2) * self._itemsize
        prefixes = varint(dims)
        record = self._fixed + raw + varint(raw) + (prefixes * self._written).sum(2)
        groups = varint(dims[:, :, 0] // np.maximum(1, self._per_group)) * (self._per_group > 0)
        bytes_ = record + varint(record) + groups
        if w.all():
            total: Ints = bytes_.sum(1)
            return total
        saved: Ints = (bytes_ * _present(w, self._branch)).sum(1) - (w[:, self._branches] == 0) @ self._saved
        return saved

    def __call__(self, w: Ints) -> Ints:
        graph = self._graph_rest + self._changing(w)
        return self._rest + graph + varint(graph)


def _fixed_bytes(branch: Branch, layout: FileLayout, changing: Sequence[StoredTensor]) -> int:
    """Bytes that are removed with a branch, without those of tensors that depend on the policy."""
    following = {t.name: t for t in changing if t.name in branch.tensors}
    total = branch.bytes + len(branch.tensors)  # one tag per tensor
    for tensor in layout.tensors:
        if tensor.name in branch.tensors and tensor.name not in following:
            raw = int(np.prod(tensor.dims)) * tensor.itemsize
            record = tensor.fixed + raw + int(varint(raw)) + int(varint(tensor.dims).sum())
            total += record + int(varint(record))
    groups = [t.dims[0] // t.per_group for t in following.values() if t.per_group]
    return total - int(varint(groups).sum())  # group attributes are already counted with the tensors
