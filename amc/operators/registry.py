"""The operators that amc has, in the order in which they offer sites and are applied."""

from __future__ import annotations

from collections.abc import Sequence

from amc.errors import PolicyError, did_you_mean
from amc.operators.branches import Branches
from amc.operators.channels import Channels
from amc.operators.operator import CompressionOperator

Operators = Sequence[CompressionOperator]

OPERATORS: tuple[CompressionOperator, ...] = (Channels(), Branches())


def known_operators() -> dict[str, CompressionOperator]:
    """All operators by the kind of setting that they give."""
    return {operator.kind: operator for operator in OPERATORS}


def operator_of(kind: str, operators: Operators = OPERATORS) -> CompressionOperator:
    """The operator of that kind. Raises PolicyError.

    >>> operator_of("branches").extends
    'channels'
    """
    found = {operator.kind: operator for operator in operators}
    if kind not in found:
        raise PolicyError(f"unknown kind of compression {kind!r}.{did_you_mean(kind, found)}")
    return found[kind]


def owner_of(operator: CompressionOperator, operators: Operators = OPERATORS) -> CompressionOperator:
    """The operator that applies this one's settings: itself, or the one that it extends."""
    return operator_of(operator.extends, operators) if operator.extends else operator
