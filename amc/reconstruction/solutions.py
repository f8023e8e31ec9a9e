"""Solutions of sequential reconstruction: kept for policies that begin alike, and applied to layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from amc.reconstruction.regression import Norm, Solution


def apply_solution(module: Any, norm: Norm | None, solution: Solution | None) -> None:
    """Give a layer its solution; without one it stays as it is."""
    if solution is None:
        return
    weight, constant = solution
    module.weight = nn.Parameter(weight.reshape(module.weight.shape), requires_grad=False)
    if module.bias is not None:
        module.bias = nn.Parameter(constant, requires_grad=False)
    elif norm is not None:  # what the BatchNorm subtracts less is what the layer gives less
        norm[0].running_mean = norm[1] - constant


class SolutionCache:
    """The solutions of late, up to so many bytes: policies that begin alike have their first layers in common."""

    def __init__(self, room: int) -> None:
        self._room, self._used = room, 0
        self._found: OrderedDict[tuple[Any, ...], Solution | None] = OrderedDict()

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._found

    def __getitem__(self, key: tuple[Any, ...]) -> Solution | None:
        self._found.move_to_end(key)
        return self._found[key]

    def clear(self) -> None:
        """Keep nothing."""
        self._found.clear()
        self._used = 0

    def put(self, key: tuple[Any, ...], solution: Solution | None) -> None:
        """Keep a solution; those that were not used for longest go."""
        self._found[key] = solution
        self._used += _bytes(solution)
        while self._used > self._room and len(self._found) > 1:
            self._used -= _bytes(self._found.popitem(last=False)[1])


def _bytes(solution: Solution | None) -> int:
    return sum(t.numel() * t.element_size() for t in solution or ())
