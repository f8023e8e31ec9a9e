"""Groups of channels, from the ids of one forward pass.

Ids that can only be removed together are one channel. Channels that are found equally often along the same axes of the
network are treated alike everywhere, and form a group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amc.graph.channels import Ints
from amc.graph.elements import along, line_of
from amc.graph.flow import Flow, Parts


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are treated alike everywhere: a site, if the trial is passed."""

    name: str
    """The first layer that produces them, with a number where it produces several groups."""
    roots: Ints
    """One id for each channel."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """The groups of a network, and what is known of all its ids."""

    roots: Ints
    """For every id the smallest id that it is tied to."""
    frozen: Mapping[int, str]
    """Why channels cannot be removed, by root."""
    parameters: Mapping[str, tuple[int, Ints]]
    """For every parameter that was followed element by element: the dimension along which its channels lie, and their
    roots along it."""
    groups: tuple[Group, ...]
    """In forward order."""

    def of(self, ids: Tensor) -> Ints:
        """The roots of ids, in their shape."""
        found: Ints = self.roots[ids.numpy()]
        return found

    def has(self, ids: Tensor, group: Group) -> bool:
        """Whether any of these ids belongs to a group."""
        return bool(np.isin(self.of(ids), group.roots).any())


def group_channels(flow: Flow) -> Grouping:
    """Ties ids that must stay together in the tensors that ``flow`` has seen, and finds the groups.

    >>> from amc.graph.trace import trace
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).eval()
    >>> flow = Flow(model)
    >>> with flow.watching():
    ...     _ = trace(model, torch.ones(1, 3), flow)
    >>> [(group.name, len(group.roots)) for group in group_channels(flow).groups]
    [('0', 4)]
    """
    roots = _tie_parts(flow)
    if _tie_unused(flow, roots):
        roots = _tie_parts(flow)
    axes, irregular = _parameter_axes(flow, roots)
    frozen = {**irregular, **flow.ids.frozen(roots)}
    return Grouping(roots, frozen, axes, tuple(_groups(flow, roots, frozen, axes)))


def _tie_parts(flow: Flow) -> Ints:
    """Tie until every dimension that became several parts changes along one of them only; the roots then."""
    while True:
        roots = flow.ids.roots()
        loose = [(p, dims) for p in flow.parts if len(dims := along(roots[p.ids.numpy()])) > 1]
        if not loose:
            return roots
        for parts, dims in loose:
            _tie_along_longest(flow, parts, dims)


def _tie_along_longest(flow: Flow, parts: Parts, dims: list[int]) -> None:
    keep = max(dims, key=lambda d: parts.ids.shape[d])
    first = parts.ids
    for dim in dims:
        if dim != keep:
            first = first.narrow(dim, 0, 1)
    flow.ids.tie(first, parts.ids, "it is cut into parts that must stay equal")


def _tie_unused(flow: Flow, roots: Ints) -> bool:
    """Tie elements of parameters that nothing has read to their channel; gives whether there are any.

    A table of positions may have more rows than the example has positions.
    """
    members = np.bincount(roots, minlength=flow.ids.count)
    tied = False
    for ids in flow.planes.parameters.values():
        own = roots[ids.numpy()]
        for dim in along(own) if len(along(own)) > 1 else []:
            lines = np.moveaxis(own, dim, 0).reshape(own.shape[dim], -1)
            used = members[lines] > 1
            if used.all() or not used.any(1).all():
                continue
            line = np.take_along_axis(lines, used.argmax(1)[:, None], 1)
            if bool(((lines == line) | ~used).all()):
                wide = torch.from_numpy(np.broadcast_to(line, lines.shape)[~used])
                flow.ids.tie(wide, torch.from_numpy(lines[~used]))
                tied = True
                break
    return tied


def _parameter_axes(flow: Flow, roots: Ints) -> tuple[dict[str, tuple[int, Ints]], dict[int, str]]:
    """The axes of parameters that were followed element by element, and why those without an axis are frozen."""
    axes: dict[str, tuple[int, Ints]] = {}
    frozen: dict[int, str] = {}
    for name, ids in flow.planes.parameters.items():
        own = roots[ids.numpy()]
        dims, reason = along(own), ""
        if name in flow.layers.by_name:
            reason = f"{name} is used in several ways"
        elif len(dims) == 1:
            axes[name] = dims[0], line_of(own, dims[0])
        elif dims:
            reason = f"the parameter {name} holds its channels in no regular way"
        if reason:
            for root in np.unique(own).tolist():
                frozen.setdefault(root, reason)
    return axes, frozen


def _groups(
    flow: Flow, roots: Ints, frozen: Mapping[int, str], parameters: Mapping[str, tuple[int, Ints]]
) -> Iterator[Group]:
    """Channels with one signature: how often they are found along each axis of the network.

    Only those that some layer reads can be removed.
    """
    layers = flow.layers.by_name.values()
    inputs = [roots[x.input.numpy()] for x in layers if x.input is not None]
    others = [roots[x.output.numpy()] for x in layers if x.refused is None]
    others += [line for _, line in parameters.values()]
    others += [roots[p.ids.numpy()] for p in flow.products]
    signatures: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, axis in enumerate([*inputs, *others]):
        for root, count in zip(*np.unique(axis, return_counts=True), strict=True):
            signatures[int(root)].append((number, int(count)))
    read = set(np.concatenate(inputs).tolist()) if inputs else set()
    alike: dict[tuple[tuple[int, int], ...], dict[int, None]] = defaultdict(dict)
    maker: dict[int, str] = {}
    for layer in layers:
        for root in roots[layer.output.numpy()].tolist():
            maker.setdefault(root, layer.name)
            if root not in frozen and root in read:
                alike[tuple(signatures[root])][root] = None
    names = Counter[str]()
    for members in map(list, alike.values()):
        name = maker[members[0]]
        names[name] += 1
        yield Group(name if names[name] == 1 else f"{name}:{names[name]}", np.array(members))
