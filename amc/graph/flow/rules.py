"""The rules of operators. A rule gives the plane of the operator's output (a list of planes, where it has several)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]
"""``rule(flow, name, func, args, kwargs, out)``: the pass so far, and one operator with its arguments and output."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operators of these names.

    ::

        @rule("transpose")
        def _transpose(flow, name, func, args, kwargs, out):
            plane = flow.planes.of(args[0])
            return None if plane is None else func(plane, *args[1:])
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
