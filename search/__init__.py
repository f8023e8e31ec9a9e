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
from amc.evaluation.problem import Problem


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
    study: bool = False
    """Whether it keeps an Optuna study, which several processes can share."""
    races: bool = True
    """Whether policies need not be read whole where it is clear how they compare with the best so far."""

    def load(self) -> Search:
        module, _, function = self.where.partition(":")
        search: Search = getattr(import_module(f"amc.search.{module}"), function)
        return search


_SEARCHERS = (
    Searcher(
        "hybrid",
        "allocated policies, their coefficients climbed, then what a surrogate finds most promising",
        "hybrid:search",
    ),
    Searcher("amc", "AMC's agent: DDPG over one step per site (He et al. 2018)", "ddpg:search"),
    Searcher("td3", "Stable-Baselines3's TD3 as it is, on the same environment", "agents:td3"),
    Searcher("sac", "Stable-Baselines3's SAC as it is, on the same environment", "agents:sac"),
    Searcher("ppo", "Stable-Baselines3's PPO as it is, on the same environment", "agents:ppo"),
    Searcher(
        "tpe",
        "Optuna's tree-structured Parzen estimator over proportions, from the uniform policy",
        "samplers:tpe",
        study=True,
    ),
    Searcher("gp", "Optuna's Gaussian process over proportions, from the uniform policy", "samplers:gp", study=True),
    Searcher("cmaes", "Optuna's CMA-ES over proportions, from the uniform policy", "samplers:cmaes", study=True),
    Searcher("qmc", "Optuna's quasi-random proportions", "samplers:qmc", study=True),
    Searcher(
        "nsga2",
        "Optuna's NSGA-II: the front of reward against cost up to the budget",
        "samplers:nsga2",
        study=True,
        races=False,
    ),
    Searcher("nsga3", "Optuna's NSGA-III: the same with reference points", "samplers:nsga3", study=True, races=False),
    Searcher(
        "allocate", "least reconstruction error within the budget, without evaluations: one policy", "allocate:search"
    ),
    Searcher("spdy", "the allocator with searched coefficients per site (Frantar & Alistarh 2022)", "spdy:search"),
    Searcher(
        "transfer", "spdy at one budget for all: many budgets of one network share its evaluations", "transfer:search"
    ),
    Searcher("netadapt", "narrow one site a step, the one that hurts least (Yang et al. 2018)", "netadapt:search"),
    Searcher(
        "sensitivity",
        "measure how much every site is missed, then narrow the least missed (Li et al. 2017)",
        "sensitivity:search",
    ),
    Searcher("annealing", "simulated annealing over neighbouring policies", "annealing:search"),
    Searcher("evolution", "evolution with crossover, mutation and repair", "evolution:search"),
    Searcher("particles", "particle filter over policies (Anwar et al. 2015)", "particles:search"),
    Searcher("trylearn", "try-and-learn agents, REINFORCE over kept steps (Huang et al. 2018)", "trylearn:search"),
    Searcher("random", "random proportions, scaled to the budget", "random:search"),
    Searcher("threshold", "one threshold over the importance of all channels: one policy", "threshold:search"),
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
