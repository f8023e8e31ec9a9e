"""Searchers propose policies of a problem; every proposal is one evaluation.

A searcher is a function ``(problem, evaluations, seed) -> None`` that calls ``problem.evaluate`` exactly
``evaluations`` times. It is deterministic given the seed and the results of evaluations, and has no input but the
problem. Its settings are keyword-only parameters with defaults (`amc.runtime.registry`). The problem stores all
evaluations, so a search is resumed by running it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from amc.errors import ConfigError
from amc.evaluation.problem import Problem
from amc.runtime.registry import Entry, FunctionEntry, Registry, options


class Search(Protocol):
    """Propose ``evaluations`` policies of ``problem``; ``settings`` are the searcher's own."""

    def __call__(self, problem: Problem, evaluations: int, seed: int, **settings: Any) -> None: ...


@dataclass(frozen=True)
class Searcher(FunctionEntry[Search]):
    """A searcher that is part of amc."""

    study: bool = False
    """Whether it uses an Optuna study, which several processes can share."""
    races: bool = True
    """Whether scores from races suffice, which stop once a policy is clearly better or worse than the incumbent."""


_SEARCHERS = (
    Searcher(
        "hybrid",
        "hill climbing over the allocator's coefficients, then expected improvement under a surrogate (default)",
        "amc.search.hybrid:search",
    ),
    Searcher(
        "amc", "AMC's agent: DDPG over one step per site", "amc.search.ddpg:search", "He et al. 2018, arXiv:1802.03494"
    ),
    Searcher(
        "td3",
        "TD3 of Stable-Baselines3 with its defaults, on the same environment",
        "amc.search.agents:td3",
        "Fujimoto et al. 2018, arXiv:1802.09477",
    ),
    Searcher(
        "sac",
        "SAC of Stable-Baselines3 with its defaults, on the same environment",
        "amc.search.agents:sac",
        "Haarnoja et al. 2018, arXiv:1801.01290",
    ),
    Searcher(
        "ppo",
        "PPO of Stable-Baselines3 with its defaults, on the same environment",
        "amc.search.agents:ppo",
        "Schulman et al. 2017, arXiv:1707.06347",
    ),
    Searcher(
        "tpe",
        "Optuna's tree-structured Parzen estimator over proportions, from the uniform policy",
        "amc.search.samplers:tpe",
        "Bergstra et al. 2011",
        study=True,
    ),
    Searcher(
        "gp",
        "Optuna's Gaussian process over proportions, from the uniform policy",
        "amc.search.samplers:gp",
        study=True,
    ),
    Searcher(
        "cmaes",
        "Optuna's CMA-ES over proportions, from the uniform policy",
        "amc.search.samplers:cmaes",
        "Hansen & Ostermeier 2001",
        study=True,
    ),
    Searcher("qmc", "Optuna's quasi-random proportions", "amc.search.samplers:qmc", study=True),
    Searcher(
        "nsga2",
        "Optuna's NSGA-II: the Pareto front of reward and cost up to the budget",
        "amc.search.samplers:nsga2",
        "Deb et al. 2002",
        study=True,
        races=False,
    ),
    Searcher(
        "nsga3",
        "Optuna's NSGA-III: the same with reference points",
        "amc.search.samplers:nsga3",
        "Deb & Jain 2014",
        study=True,
        races=False,
    ),
    Searcher(
        "allocate",
        "one policy: the least estimated error within the budget, computed without evaluations",
        "amc.search.allocate:search",
    ),
    Searcher(
        "spdy",
        "search over coefficients per site for the allocator",
        "amc.search.spdy:search",
        "Frantar & Alistarh 2022, arXiv:2201.13096",
    ),
    Searcher(
        "transfer",
        "spdy at one common budget: searches of one network at many budgets share its evaluations",
        "amc.search.transfer:search",
    ),
    Searcher(
        "netadapt",
        "narrow one site per step, the one that reduces the reward least",
        "amc.search.netadapt:search",
        "Yang et al. 2018, arXiv:1804.03230",
    ),
    Searcher(
        "sensitivity",
        "measure the sensitivity of every site, then narrow the least sensitive",
        "amc.search.sensitivity:search",
        "Li et al. 2017, arXiv:1608.08710",
    ),
    Searcher(
        "annealing",
        "simulated annealing over neighbouring policies",
        "amc.search.annealing:search",
        "Kirkpatrick et al. 1983",
    ),
    Searcher(
        "evolution",
        "evolution with crossover, mutation and repair",
        "amc.search.evolution:search",
        "Real et al. 2019, arXiv:1802.01548",
    ),
    Searcher(
        "particles",
        "particle filter over policies",
        "amc.search.particles:search",
        "Anwar, Hwang & Sung 2015, arXiv:1512.08571",
    ),
    Searcher(
        "trylearn",
        "try-and-learn agents, REINFORCE over kept steps",
        "amc.search.trylearn:search",
        "Huang et al. 2018, arXiv:1801.07365",
    ),
    Searcher("random", "random proportions, scaled to the budget", "amc.search.random:search"),
    Searcher(
        "threshold", "one policy: a global threshold on the importance of all channels", "amc.search.threshold:search"
    ),
    Searcher("uniform", "one policy: the same share of every site", "amc.search.uniform:search"),
)

SEARCHERS: Registry[Search] = Registry("searcher", "amc.searchers", _SEARCHERS)


def searchers() -> dict[str, Entry[Search]]:
    """All searchers by name, those of installed packages included.

    >>> searchers()["spdy"].reference
    'Frantar & Alistarh 2022, arXiv:2201.13096'
    """
    return SEARCHERS.entries()


def load_searcher(name: str) -> Search:
    """A searcher by its name or as ``file.py:function``. Raises ConfigError."""
    return SEARCHERS.load(name)


def keeps_study(name: str) -> bool:
    """Whether a searcher uses an Optuna study, which several processes can share.

    >>> keeps_study("tpe"), keeps_study("hybrid")
    (True, False)
    """
    entry = SEARCHERS.entry(name)
    return isinstance(entry, Searcher) and entry.study


def may_race(name: str) -> bool:
    """Whether a searcher may get scores from races, which are estimates.

    A user's searcher that needs exact scores sets the attribute ``races = False`` on its function.
    """
    entry = SEARCHERS.entry(name)
    return entry.races if isinstance(entry, Searcher) else bool(getattr(entry.load(), "races", True))


def check_searcher(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Validate and convert a searcher's ``settings``. Raises ConfigError for an unknown searcher or a wrong setting."""
    return options(f"searcher {name}", load_searcher(name), settings)


def run_searcher(name: str, settings: Mapping[str, Any], problem: Problem, evaluations: int, seed: int) -> None:
    """Run a searcher. An exception in a user's searcher becomes a ConfigError of one line."""
    search, given = load_searcher(name), check_searcher(name, settings)
    with SEARCHERS.guarded(name):
        search(problem, evaluations, seed, **given)
    if not problem.evaluations:
        raise ConfigError(f"the searcher {name} evaluated no policy: it must call problem.evaluate(choice).")
