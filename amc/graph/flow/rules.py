"""The rules by operator. Each gives the plane of what the operator gives (a list, where it gives several)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]
"""``rule(flow, name, func, args, kwargs, out)``: the flow so far, and one operator as it ran."""

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operators of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
