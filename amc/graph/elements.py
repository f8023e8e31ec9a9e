"""Element ids: which elements of tensors belong to the same channel.

An *id* is an integer that names a channel of one layer, or an element of a parameter. A *plane* is an integer
tensor of a tensor's shape that holds the id of every element. Along dimensions where ids do not change it has stride 0,
so it takes as much memory as it has channels. Ids whose elements can only be removed together are *tied*; an id that
cannot be removed is *frozen*, with the reason. The smallest of the ids that are tied together is their *root*.
"""

# mypy: disable-error-code=no-untyped-call
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amc.graph.channels import Ints

FIXED = 1
"""The id of elements that are always there, such as padding."""
_TIDIED_UP_TO = 1 << 22  # elements; larger planes are not searched for dimensions that do not change


class ElementIds:
    """All ids of one network, and what is known of them.

    >>> ids = ElementIds()
    >>> convolution, shortcut = ids.fresh(2), ids.fresh(2)
    >>> ids.tie(convolution, shortcut)
    >>> ids.roots()[shortcut.numpy()].tolist() == convolution.tolist()
    True
    """

    def __init__(self) -> None:
        self.count = FIXED + 1
        self._first: list[Ints] = []
        self._second: list[Ints] = []
        self._frozen: list[tuple[Ints, str]] = []
        self._tied: list[tuple[Ints, str]] = []

    def fresh(self, count: int) -> Tensor:
        """``count`` new ids ``[count]``."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def tie(self, first: Tensor, second: Tensor, reason: str = "") -> None:
        """Element by element (they broadcast), the ids of the two can only be removed together."""
        a, b = (t.reshape(-1).numpy() for t in torch.broadcast_tensors(first, second))
        different = a != b
        if not different.any():
            return
        a, b = a[different], b[different]
        padded = torch.from_numpy(np.concatenate([a[b == FIXED], b[a == FIXED]]))
        self.freeze(padded, reason or "it is padded to a fixed number")
        loose = (a != FIXED) & (b != FIXED)
        self._first.append(a[loose])
        self._second.append(b[loose])
        if reason:
            self._tied.append((np.unique(a[loose]), reason))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """None of these ids can be removed."""
        found = np.unique(ids.reshape(-1).numpy())
        if len(found):
            self._frozen.append((found, reason))

    def combine(self, operands: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor | None:
        """Tie what an element-wise operator combines: planes (of equal dimensions) with their tensors; its plane."""
        found: Tensor | None = None
        for plane, _ in operands:
            found = self.join(found, plane)
        for plane, tensor in operands:
            if plane is None:
                self.meet_constant(found, tensor)
        return found

    def join(self, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        """Tie two planes of equal dimensions element by element (they broadcast); the plane of the result."""
        if first is None or second is None:
            return first if second is None else second
        mine, theirs = varying(first), varying(second)
        shape = torch.broadcast_shapes(first.shape, second.shape)
        if not mine or not theirs:
            return (first if mine else second).expand(shape)
        if not set(mine) & set(theirs):
            self.freeze(core(second), "it meets channels of another kind")
            return first.expand(shape)
        self.tie(core(first), core(second))
        # the simpler of the two, unless it is only broadcast along what changes in the other
        simple, other = sorted((first, second), key=lambda p: len(varying(p)))
        broadcast = any(simple.shape[d] == 1 and shape[d] > 1 for d in varying(other))
        return (other if broadcast else simple).expand(shape)

    def meet_constant(self, plane: Tensor | None, constant: Tensor) -> None:
        """A plane is combined with a tensor without channels: one of full length along them fixes their number."""
        if plane is not None:
            offset = plane.ndim - constant.ndim
            # a dimension that is expanded (stride 0) has any length
            lengths = [1 if constant.stride(d) == 0 else constant.shape[d] for d in range(constant.ndim)]
            if any(d >= offset and lengths[d - offset] > 1 for d in varying(plane)):
                self.freeze(core(plane), "it meets a constant with a fixed number of channels")

    def only_along(self, plane: Tensor, dims: Sequence[int], reason: str) -> Tensor:
        """Tie ids along all other dimensions; the plane, which then changes along ``dims`` only."""
        for dim in varying(plane):
            if dim not in dims:
                first = plane.narrow(dim, 0, 1)
                self.tie(core(first), core(plane), reason)
                plane = first.expand(plane.shape)
        return plane

    def channels_along(self, plane: Tensor | None, dim: int, count: int, reason: str) -> Tensor | None:
        """The ids ``[count]`` along ``dim``; what changes along other dimensions is tied."""
        if plane is None:
            return None
        small = core(self.only_along(plane, [dim], reason)).reshape(-1)
        return small if len(small) == count else small[:1].expand(count)

    def roots(self) -> Ints:
        """For every id the smallest id that it is tied to ``[count]``."""
        roots = np.arange(self.count)
        if not self._first:
            return roots
        a, b = np.concatenate(self._first), np.concatenate(self._second)
        while True:
            low = np.minimum(roots[a], roots[b])
            before = roots.copy()
            np.minimum.at(roots, roots[a], low)
            np.minimum.at(roots, roots[b], low)
            while True:  # shorten the chains: every id points at its root's root
                further = roots[roots]
                if np.array_equal(further, roots):
                    break
                roots = further
            if np.array_equal(before, roots):
                return roots

    def frozen(self, roots: Ints) -> dict[int, str]:
        """The roots of ids that cannot be removed, with the first reason given."""
        found = {FIXED: "it is padded to a fixed number"}
        for ids, reason in self._frozen:
            for root in np.unique(roots[ids]).tolist():
                found.setdefault(root, reason)
        return found

    def why_tied(self, roots: Ints, root: int) -> str:
        """Why several channels became one, if a reason was given."""
        return next((reason for ids, reason in self._tied if root in roots[ids]), "")


def core(plane: Tensor) -> Tensor:
    """The plane with length 1 along every dimension where ids do not change.

    >>> core(torch.arange(2)[None, :, None].expand(1, 2, 3)).shape
    torch.Size([1, 2, 1])
    """
    for dim in range(plane.ndim):
        if plane.stride(dim) == 0 and plane.shape[dim] > 1:
            plane = plane.narrow(dim, 0, 1)
    return plane


def tidy(plane: Tensor) -> Tensor:
    """The same plane with stride 0 wherever ids do not change.

    >>> tidy(torch.tensor([[5, 5], [6, 6]])).stride()
    (2, 0)
    """
    small = core(plane)
    for dim in range(small.ndim):
        if small.shape[dim] > 1 and small.numel() <= _TIDIED_UP_TO:
            first = small.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(small), small):
                small = first
    return small.expand(plane.shape)


def varying(plane: Tensor) -> list[int]:
    """The dimensions along which ids change.

    >>> varying(torch.arange(2)[None, :, None].expand(1, 2, 3))
    [1]
    """
    return [d for d in range(plane.ndim) if plane.shape[d] > 1 and plane.stride(d) != 0]


def along(roots: Ints) -> list[int]:
    """The dimensions along which the roots change.

    >>> along(np.array([[1, 1], [2, 2]]))
    [0]
    """
    return [d for d in range(roots.ndim) if (roots != np.take(roots, [0], d)).any()]


def line_of(roots: Ints, dim: int) -> Ints:
    """The first roots along a dimension.

    >>> line_of(np.array([[1, 1], [2, 2]]), 0)
    array([1, 2])
    """
    return roots[tuple(slice(None) if d == dim else 0 for d in range(roots.ndim))]
