"""Drop-and-grow rules: which weights a sparse network loses, and where it gets as many new ones.

A rule is a file beside this one, and a line in the table: a function whose keyword-only parameters are its settings
(`amc.runtime.registry`), and which gives a `SparseRule`. New weights start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from amc.runtime.registry import Entry, FunctionEntry, Registry, about, options
from amc.train.sparse.state import Masks, SparseState

Share = Annotated[float, about("share of the weights that change places in the first change", ge=0, lt=1)]
Changes = Annotated[int, about("how often weights change places", ge=0, le=10**6)]
Until = Annotated[float, about("share of the training after which they stay", gt=0, le=1)]


@dataclass(frozen=True)
class SparseRule:
    """When a sparse network's masks change, and how."""

    change: Callable[[SparseState, float], Masks]
    """Masks with as many weights as there were, of which this share is new."""
    share: float
    changes: int
    until: float
    decays: bool
    """Whether the share falls to 0, as half of a cosine."""
    needs_momentum: bool = False

    def is_due(self, number: int, steps: int) -> bool:
        """Whether masks change after step ``number``: at equal distances, and not in the last step.

        >>> rule = SparseRule(lambda state, share: {}, 0.3, 3, 0.75, True)
        >>> [number for number in range(12) if rule.is_due(number, 12)]
        [2, 5, 8]
        """
        last = min(math.ceil(self.until * steps), steps - 1)
        return number < last and (number + 1) * self.changes // last > number * self.changes // last

    def share_at(self, number: int, steps: int) -> float:
        """The share of the weights that change places after step ``number``."""
        if not self.decays:
            return self.share
        return self.share / 2 * (1 + math.cos(math.pi * min(1.0, number / (self.until * steps))))


class RuleFactory(Protocol):
    """Makes a rule of its settings."""

    def __call__(self, **settings: Any) -> SparseRule: ...


RULES: Registry[RuleFactory] = Registry("sparse rule", "amc.sparse_rules", (
    FunctionEntry("set", "drop the smallest of every layer, grow at random", "amc.train.sparse.evolution:set_rule",
                  "Mocanu et al. 2018, Sparse Evolutionary Training, arXiv:1707.04780"),
    FunctionEntry("dsr", "drop the smallest of all, grow at random where most have stayed",
                  "amc.train.sparse.reparameterisation:dsr_rule", "Mostafa & Wang 2019, arXiv:1902.05967"),
    FunctionEntry("sparse-momentum", "drop the smallest of every layer, grow where momentum is largest",
                  "amc.train.sparse.momentum:momentum_rule", "Dettmers & Zettlemoyer 2019, arXiv:1907.04840"),
    FunctionEntry("rigl", "drop the smallest of every layer, grow where gradients are largest",
                  "amc.train.sparse.lottery:rigl_rule", "Evci et al. 2020, RigL, arXiv:1911.11134"),
))  # fmt: skip


def sparse_rules() -> dict[str, Entry[RuleFactory]]:
    """All rules by name.

    >>> list(sparse_rules())
    ['set', 'dsr', 'sparse-momentum', 'rigl']
    """
    return RULES.entries()


def sparse_rule(name: str, settings: Mapping[str, Any]) -> SparseRule:
    """A rule by name, or of ``file.py:function``. Raises ConfigError where there is none, or a setting is wrong."""
    factory = RULES.load(name)
    given = options(f"sparse rule {name}", factory, settings)
    with RULES.guarded(name):
        return factory(**given)
