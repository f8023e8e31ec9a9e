"""Operators by name: built-in ones, those of installed packages (group ``amc.operators``), and ``file.py:name``.

They offer sites and are applied in the order in which they are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from amc.config import shown
from amc.errors import ConfigError, PolicyError, did_you_mean
from amc.operators.bits import Bits
from amc.operators.branches import Branches
from amc.operators.channels import Channels
from amc.operators.operator import CompressionOperator
from amc.runtime.plugins import made_by
from amc.runtime.registry import Entry, Registry

Operators = Sequence[CompressionOperator]

OPERATORS: tuple[CompressionOperator, ...] = (Channels(), Branches())
"""The built-in operators that change widths only: latency models know them, and they are the usual ones."""
BUILT_IN: tuple[CompressionOperator, ...] = (*OPERATORS, Bits())

_OWN = {operator.kind: operator for operator in BUILT_IN}
_REGISTRY: Registry[Any] = Registry(
    "operator",
    "amc.operators",
    [Entry(o.kind, o.summary, reference=o.reference, loader=partial(_OWN.__getitem__, o.kind)) for o in BUILT_IN],
)


def operators() -> dict[str, Entry[Any]]:
    """The entries of all operators by name.

    >>> list(operators())[:3]
    ['channels', 'branches', 'bits']
    """
    return _REGISTRY.entries()


def load_operator(name: str) -> CompressionOperator:
    """Load an operator by name. A file or a package may provide an instance, a class or a factory function.

    Raises ConfigError. The name of an installed operator must be its kind, so that policy files can refer to it.
    """
    if name in _OWN:
        return _OWN[name]
    found, installed = _REGISTRY.load(name), name in operators()
    operator = found if isinstance(found, CompressionOperator) else made_by(name, found, ConfigError)
    if not isinstance(operator, CompressionOperator):
        raise ConfigError(f"the operator {name} is a {type(operator).__name__}, but must be a CompressionOperator.")
    if operator.kind in _OWN:
        raise ConfigError(f"the operator {name} is of the kind '{operator.kind}', which is built in.")
    if installed and operator.kind != name:
        raise ConfigError(f"the operator {name} is of the kind '{operator.kind}': its name must be its kind.")
    return operator


def load_operators(names: Iterable[str]) -> Operators:
    """Load operators by name, in this order. Raises ConfigError if they cannot be combined.

    >>> [operator.kind for operator in load_operators(["channels", "branches"])]
    ['channels', 'branches']
    >>> load_operators(["branches"])
    Traceback (most recent call last):
    amc.errors.ConfigError: the operator branches adds settings to the sites of channels: name channels first.
    """
    found: list[CompressionOperator] = []
    for name in names:
        operator = load_operator(name)
        kinds = [known.kind for known in found]
        if operator.kind in kinds:
            raise ConfigError(f"the operator {name} is of the kind '{operator.kind}', which is named twice.")
        if operator.extends and operator.extends not in kinds:
            extended = operator.extends
            raise ConfigError(f"the operator {name} adds settings to the sites of {extended}: name {extended} first.")
        found.append(operator)
    if not found:
        raise ConfigError("no operator is named: name at least one.")
    return tuple(found)


def foreign(operators: Operators) -> list[str]:
    """The kinds of the operators that are not built in.

    >>> foreign(BUILT_IN)
    []
    """
    return [operator.kind for operator in operators if operator.kind not in _OWN]


def beyond_widths(operators: Operators) -> list[str]:
    """The kinds of the operators that do something else than change widths.

    >>> beyond_widths(BUILT_IN)
    ['bits']
    """
    usual = {operator.kind for operator in OPERATORS}
    return [operator.kind for operator in operators if operator.kind not in usual]


def beside_own(operators: Operators) -> Operators:
    """The built-in operators, followed by those of ``operators`` that are not built in.

    >>> [operator.kind for operator in beside_own([])]
    ['channels', 'branches', 'bits']
    """
    if not isinstance(operators, list | tuple) or not all(isinstance(o, CompressionOperator) for o in operators):
        raise ConfigError(f"operators is {shown(operators)}, but must be a list of operators.")
    return (*BUILT_IN, *(operator for operator in operators if operator.kind not in _OWN))


def operator_of(kind: str, operators: Operators = OPERATORS) -> CompressionOperator:
    """The operator of a kind: one of ``operators``, a built-in one or that of a package. Raises PolicyError.

    >>> operator_of("branches").extends
    'channels'
    """
    found = {**_OWN, **{operator.kind: operator for operator in operators}}
    if kind in found:
        return found[kind]
    if _REGISTRY.entries().get(kind) is not None:
        try:
            return load_operator(kind)
        except ConfigError as error:
            raise PolicyError(str(error)) from error
    raise PolicyError(f"unknown kind of compression {kind!r}.{did_you_mean(kind, found)}")


def with_kinds(kinds: Iterable[str], operators: Operators = OPERATORS) -> Operators:
    """``operators``, followed by those of the other ``kinds`` in their order. Raises PolicyError."""
    known = {operator.kind for operator in operators}
    others = dict.fromkeys(kind for kind in kinds if kind not in known)
    return (*operators, *(operator_of(kind, operators) for kind in others))


def owner_of(operator: CompressionOperator, operators: Operators = OPERATORS) -> CompressionOperator:
    """The operator that applies this one's settings: itself, or the one that it extends."""
    return operator_of(operator.extends, operators) if operator.extends else operator
