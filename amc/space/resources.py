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

from amc.graph.channels import ActivationProduct, Layer
from amc.graph.sites import Graph
from amc.graph.surgery import axes_of, holder_of, own_tensors
from amc.space.file_size import FileLayout, FileSize, present
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
        self._file = FileSize(layout, sites, self._full) if layout else None

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

    def file_size(self, choices: ArrayLike, changed: ArrayLike = 0) -> Ints:
        """Bytes ``[B]`` of model.onnx for the widths ``choices [B, S]``, if its graph is ``changed [B]`` bytes longer.

        Operators that write something else than the widths give the difference. Only with a layout.
        """
        assert self._file is not None
        return self._file(np.atleast_2d(np.asarray(choices, np.int64)), np.asarray(changed, np.int64))

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
        return product if w.all() else product * present(w, self._branch)


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
