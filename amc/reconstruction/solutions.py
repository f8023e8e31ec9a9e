"""Solutions of sequential reconstruction: cached for policies with equal first layers, and applied to layers."""

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
    elif norm is not None:  # lowering its running mean by the constant adds the constant
        norm[0].running_mean = norm[1] - constant


class SolutionCache:
    """The solutions that were used last, up to ``room`` bytes.

    >>> cache = SolutionCache(room=1000)
    >>> cache.put(("conv1", 8), None)
    >>> ("conv1", 8) in cache
    True
    """

    def __init__(self, room: int) -> None:
        self._room, self._used = room, 0
        self._found: OrderedDict[tuple[Any, ...], Solution | None] = OrderedDict()

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._found

    def __getitem__(self, key: tuple[Any, ...]) -> Solution | None:
        self._found.move_to_end(key)
        return self._found[key]

    def clear(self) -> None:
        """Drop all solutions."""
        self._found.clear()
        self._used = 0

    def put(self, key: tuple[Any, ...], solution: Solution | None) -> None:
        """Keep a solution; the least recently used ones are dropped."""
        self._used += _bytes(solution) - _bytes(self._found.pop(key, None))
        self._found[key] = solution
        while self._used > self._room and len(self._found) > 1:
            self._used -= _bytes(self._found.popitem(last=False)[1])


def _bytes(solution: Solution | None) -> int:
    return sum(t.numel() * t.element_size() for t in solution or ())
