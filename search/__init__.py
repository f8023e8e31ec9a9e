"""Searchers: they propose policies of a problem, one evaluation each.

A searcher is a function ``(problem, evaluations, seed) -> None`` that calls ``problem.evaluate`` exactly
``evaluations`` times, is deterministic given the seed and what the evaluations say, and reads nothing but the
problem. The problem remembers what was found; resuming a search is running it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from amc.errors import ConfigError, did_you_mean
from amc.problem import Problem


class Search(Protocol):
    """Propose ``evaluations`` policies of ``problem``."""

    def __call__(self, problem: Problem, evaluations: int, seed: int) -> None: ...


@dataclass(frozen=True)
class Searcher:
    """A searcher as users name it. Its module is imported when it is used."""

    name: str
    summary: str
    module: str

    def load(self) -> Search:
        search: Callable[..., None] = import_module(self.module).search
        return search


_SEARCHERS = (
    Searcher("amc", "AMC's agent: DDPG over one step per site (He et al. 2018)", "amc.search.ddpg"),
    Searcher("tpe", "Optuna's tree-structured Parzen estimator, started with the uniform policy", "amc.search.tpe"),
    Searcher("random", "random proportions, scaled to the budget", "amc.search.random"),
    Searcher("uniform", "the same share of every site: one policy", "amc.search.uniform"),
)


def searchers() -> dict[str, Searcher]:
    """All searchers by name."""
    return {s.name: s for s in _SEARCHERS}


def load_searcher(name: str) -> Search:
    """The searcher of that name."""
    if name not in searchers():
        raise ConfigError(f"unknown searcher '{name}'.{did_you_mean(name, searchers())}")
    return searchers()[name].load()
