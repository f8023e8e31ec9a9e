"""Searchers: they propose policies of a problem, one evaluation each.

A searcher is a function ``(problem, evaluations, seed) -> None`` that calls ``problem.evaluate`` exactly
``evaluations`` times, is deterministic given the seed and what the evaluations say, and reads nothing but the
problem. The problem remembers what was found; resuming a search is running it again.
"""

from __future__ import annotations

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
    where: str
    """``module:function``, the module within this room."""

    def load(self) -> Search:
        module, _, function = self.where.partition(":")
        search: Search = getattr(import_module(f"amc.search.{module}"), function)
        return search


_SEARCHERS = (
    Searcher("amc", "AMC's agent: DDPG over one step per site (He et al. 2018)", "ddpg:search"),
    Searcher("td3", "Stable-Baselines3's TD3 as it is, on the same environment", "agents:td3"),
    Searcher("sac", "Stable-Baselines3's SAC as it is, on the same environment", "agents:sac"),
    Searcher("ppo", "Stable-Baselines3's PPO as it is, on the same environment", "agents:ppo"),
    Searcher(
        "tpe", "Optuna's tree-structured Parzen estimator over proportions, from the uniform policy", "samplers:tpe"
    ),
    Searcher("gp", "Optuna's Gaussian process over proportions, from the uniform policy", "samplers:gp"),
    Searcher("cmaes", "Optuna's CMA-ES over proportions, from the uniform policy", "samplers:cmaes"),
    Searcher("qmc", "Optuna's quasi-random proportions", "samplers:qmc"),
    Searcher(
        "allocate", "least reconstruction error within the budget, without evaluations: one policy", "allocate:search"
    ),
    Searcher("spdy", "the allocator with searched coefficients per site (Frantar & Alistarh 2022)", "spdy:search"),
    Searcher("netadapt", "narrow one site a step, the one that hurts least (Yang et al. 2018)", "netadapt:search"),
    Searcher("annealing", "simulated annealing over neighbouring policies", "annealing:search"),
    Searcher("evolution", "evolution with crossover, mutation and repair", "evolution:search"),
    Searcher("random", "random proportions, scaled to the budget", "random:search"),
    Searcher("uniform", "the same share of every site: one policy", "uniform:search"),
)


def searchers() -> dict[str, Searcher]:
    """All searchers by name."""
    return {s.name: s for s in _SEARCHERS}


def load_searcher(name: str) -> Search:
    """The searcher of that name."""
    if name not in searchers():
        raise ConfigError(f"unknown searcher '{name}'.{did_you_mean(name, searchers())}")
    return searchers()[name].load()
