"""The exact size of a policy's ONNX file, computed from the layout of the original's file.

The file is a sequence of records with length prefixes. A policy changes the records of tensors, and the prefixes of the
messages around them; everything else is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.graph.channels import Axis, length_of
from amc.space.sites import Ints


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
    packed: int = 1
    """Elements in one item: 2 of 4 bits in a byte."""


@dataclass(frozen=True)
class WeightPlace:
    """Where the weights of a layer are in the ONNX file."""

    tensor: str
    """Name of the initializer."""
    axis: int
    """Its dimension of the layer's output channels."""


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
    weights: Mapping[str, WeightPlace] = field(default_factory=dict)
    """The weights of convolutions and linear layers that one operator reads, by the layer's name."""
    least_bits: int = 8
    """The fewest bits of weights that the file can hold."""


def present(w: Ints, branch: Ints) -> NDArray[np.bool_]:
    """Which rows exist ``[B, R]``: those outside removed branches. ``branch [R]`` is a row's branch's site, or -1."""
    left: NDArray[np.bool_] = (branch < 0) | (w[:, branch] > 0)
    return left


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


class TensorRecords:
    """Bytes of the records of T tensors, with their length prefixes but without their tags.

    Tensors have up to D dimensions; missing dimensions count as length 1 and are not written.
    """

    def __init__(self, tensors: Sequence[StoredTensor], sites: int) -> None:
        longest = max((len(t.dims) for t in tensors), default=1)
        self._slopes = np.zeros((sites, len(tensors), longest), np.int64)
        self._constant = np.ones((len(tensors), longest), np.int64)
        self._written = np.zeros((len(tensors), longest), np.int64)
        for row, tensor in enumerate(tensors):
            for column, (axis, dim) in enumerate(zip(tensor.axes, tensor.dims, strict=True)):
                self._slopes[:, row, column], self._constant[row, column] = length_of(axis, dim, sites)
                self._written[row, column] = 1
        self._itemsize = np.array([t.itemsize for t in tensors], np.int64)
        self._packed = np.array([t.packed for t in tensors], np.int64)
        self._fixed = np.array([t.fixed for t in tensors], np.int64)

    def dims(self, w: Ints) -> Ints:
        """The tensors' dimensions ``[B, T, D]`` for widths ``w [B, S]``."""
        found: Ints = np.tensordot(w, self._slopes, 1) + self._constant
        return found

    def bytes(self, dims: Ints) -> Ints:
        """Bytes ``[B, T]`` of the records of tensors with the dimensions ``dims [B, T, D]``."""
        raw = -(-dims.prod(2) // self._packed) * self._itemsize
        record = self._fixed + raw + varint(raw) + (varint(dims) * self._written).sum(2)
        found: Ints = record + varint(record)
        return found


class FileSize:
    """Bytes of the ONNX file: the records of tensors with their length prefixes, and a constant rest."""

    def __init__(self, layout: FileLayout, sites: int, full: Ints) -> None:
        tensors = [t for t in layout.tensors if any(axis is not None for axis in t.axes)]
        self._records = TensorRecords(tensors, sites)
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
        dims = self._records.dims(w)
        groups = varint(dims[:, :, 0] // np.maximum(1, self._per_group)) * (self._per_group > 0)
        bytes_ = self._records.bytes(dims) + groups
        if w.all():
            total: Ints = bytes_.sum(1)
            return total
        saved: Ints = (bytes_ * present(w, self._branch)).sum(1) - (w[:, self._branches] == 0) @ self._saved
        return saved

    def __call__(self, w: Ints, changed: Ints | int = 0) -> Ints:
        """Bytes ``[B]`` of the file for widths ``w [B, S]``, if its graph is longer by ``changed [B]`` bytes."""
        graph = self._graph_rest + self._changing(w) + changed
        return self._rest + graph + varint(graph)


def _fixed_bytes(branch: Branch, layout: FileLayout, changing: Sequence[StoredTensor]) -> int:
    """Bytes that are removed with a branch, without those of tensors that depend on the policy."""
    following = {t.name: t for t in changing if t.name in branch.tensors}
    total = branch.bytes + len(branch.tensors)  # one tag per tensor
    for tensor in layout.tensors:
        if tensor.name in branch.tensors and tensor.name not in following:
            raw = -(-int(np.prod(tensor.dims)) // tensor.packed) * tensor.itemsize
            record = tensor.fixed + raw + int(varint(raw)) + int(varint(tensor.dims).sum())
            total += record + int(varint(record))
    groups = [t.dims[0] // t.per_group for t in following.values() if t.per_group]
    return total - int(varint(groups).sum())  # group attributes are already counted with the tensors
