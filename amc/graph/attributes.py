"""Numbers that modules hold and that must change when channels are removed: heads, widths, shapes to reshape to.

Nothing says what such a number means. Those that equal a length along which a group of channels lies are candidates;
the trial shows whether the network runs when they change (`amc.graph.selection`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from torch import nn

from amc.graph.channels import Axis, Ints, Layer, ModuleKind, ShapeAttribute, kind_of
from amc.graph.elements import along, line_of
from amc.graph.flow import Flow, Parts, View

_Seen = TypeVar("_Seen", Parts, View)
_Found = dict[tuple[str, ShapeAttribute], Layer]
"""By module and attribute."""


class AttributeFinder:
    """The whole numbers and tuples of a network's modules that may depend on channels; ``roots`` of all ids."""

    def __init__(self, model: nn.Module, flow: Flow, roots: Ints) -> None:
        self._model, self._flow, self._roots = model, flow, roots

    def following(self, members: Ints) -> list[list[Layer]]:
        """The attributes that may follow the group of channels with the roots ``members``, in five ways to be tried.

        In order: none; units; units and whole axes; shapes and units; all of them.
        """
        units, wholes = self._lengths(members)
        shapes = self._shapes(members)
        ways = (units, units | wholes, shapes | units, shapes | units | wholes)
        return [[], *(list(way.values()) for way in ways)]

    def _lengths(self, members: Ints) -> tuple[_Found, _Found]:
        """Where a dimension becomes several: how many units there are, and the lengths of whole axes."""
        units: _Found = {}
        wholes: _Found = {}
        for parts, roots, dim in self._concerned(self._flow.parts, members):
            length, total = roots.shape[dim], roots.size
            axis = _axis(line_of(roots, dim), members)
            others = [n for d, n in enumerate(roots.shape) if d != dim]
            for key, value in self._held(parts.module):
                attribute = ShapeAttribute(key)
                layer = Layer(parts.module, attribute, axis)
                if value == length and not re.search("dim|size|window|area|patch|ratio", key):
                    units[parts.module, attribute] = layer
                elif value in (total, *(total // n for n in others)):
                    wholes[parts.module, attribute] = layer
        return units, wholes

    def _shapes(self, members: Ints) -> _Found:
        """Lengths that modules hold as a number, or in a tuple that is a whole shape."""
        found: _Found = {}
        for view, roots, dim in self._concerned(self._flow.views, members):
            line = line_of(roots, dim)
            axis = _axis(line, members)
            for name in self._holders(view.module):
                values = vars(self._model.get_submodule(name))
                shapes = [key for key, v in values.items() if type(v) is tuple and v == view.shape]
                attributes = [ShapeAttribute(key, dim) for key in shapes]
                if len(line) == roots.size:
                    numbers = [key for key, value in self._held(name) if value == len(line)]
                    numbers = [key for key in numbers if not re.search("size|window|area|patch|ratio", key)]
                    attributes += map(ShapeAttribute, numbers)
                for attribute in attributes:
                    found[name, attribute] = Layer(name, attribute, axis)
        return found

    def _concerned(self, seen: Iterable[_Seen], members: Ints) -> Iterator[tuple[_Seen, Ints, int]]:
        """Those in which the group lies along one dimension, with their roots, and that dimension."""
        for item in seen:
            roots = self._roots[item.ids.numpy()]
            dims = along(roots)
            if len(dims) == 1 and np.isin(roots, members).any():
                yield item, roots, dims[0]

    def _holders(self, name: str) -> list[str]:
        """A module that is no layer, and what it holds of the kind: their methods may be called from outside."""
        module = self._model.get_submodule(name)
        inside = [(f"{name}.{child}".lstrip("."), m) for child, m in module.named_children()]
        return [key for key, m in [(name, module), *inside] if kind_of(m) is ModuleKind.OTHER]

    def _held(self, module: str) -> list[tuple[str, int]]:
        held = vars(self._model.get_submodule(module))
        return [(key, v) for key, v in held.items() if type(v) is int and v > 1 and not key.startswith("_")]


def _axis(roots: Ints, members: Ints) -> Axis:
    """Where one group's channels lie along these roots; the group counts as site 0."""
    order = np.argsort(members)
    place = np.searchsorted(members, roots, sorter=order).clip(max=len(order) - 1)
    inside = np.isin(roots, members)
    return Axis(np.where(inside, 0, -1), np.where(inside, order[place], -1))
