"""Searchers: they propose policies of a problem, one evaluation each.

A searcher is a function ``(problem, evaluations, seed) -> None`` that calls ``problem.evaluate`` exactly
``evaluations`` times, is deterministic given the seed and what the evaluations say, and reads nothing but the
problem. Its settings are keyword-only parameters with defaults (`amc.runtime.registry`). The problem remembers what
was found; resuming a search is running it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from amc.errors import AmcError, ConfigError, first_line
from amc.evaluation.problem import Problem
from amc.runtime.registry import Entry, FunctionEntry, Registry, options


class Search(Protocol):
    """Propose ``evaluations`` policies of ``problem``; ``settings`` are the searcher's own."""

    def __call__(self, problem: Problem, evaluations: int, seed: int, **settings: Any) -> None: ...


@dataclass(frozen=True)
class Searcher(FunctionEntry[Search]):
    """A searcher that comes with amc."""

    study: bool = False
    """Whether it keeps an Optuna study, which several processes can share."""
    races: bool = True
    """Whether policies need not be read whole where it is clear how they compare with the best so far."""


_SEARCHERS = (
    Searcher(
        "hybrid",
        "allocated policies, their coefficients climbed, then what a surrogate finds most promising",
        "amc.search.hybrid:search",
    ),
    Searcher(
        "amc", "AMC's agent: DDPG over one step per site", "amc.search.ddpg:search", "He et al. 2018, arXiv:1802.03494"
    ),
    Searcher(
        "td3",
        "Stable-Baselines3's TD3 as it is, on the same environment",
        "amc.search.agents:td3",
        "Fujimoto et al. 2018, arXiv:1802.09477",
    ),
    Searcher(
        "sac",
        "Stable-Baselines3's SAC as it is, on the same environment",
        "amc.search.agents:sac",
        "Haarnoja et al. 2018, arXiv:1801.01290",
    ),
    Searcher(
        "ppo",
        "Stable-Baselines3's PPO as it is, on the same environment",
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
        "Optuna's NSGA-II: the front of reward against cost up to the budget",
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
        "least reconstruction error within the budget, without evaluations: one policy",
        "amc.search.allocate:search",
    ),
    Searcher(
        "spdy",
        "the allocator with searched coefficients per site",
        "amc.search.spdy:search",
        "Frantar & Alistarh 2022, arXiv:2201.13096",
    ),
    Searcher(
        "transfer",
        "spdy at one budget for all: many budgets of one network share its evaluations",
        "amc.search.transfer:search",
    ),
    Searcher(
        "netadapt",
        "narrow one site a step, the one that hurts least",
        "amc.search.netadapt:search",
        "Yang et al. 2018, arXiv:1804.03230",
    ),
    Searcher(
        "sensitivity",
        "measure how much every site is missed, then narrow the least missed",
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
        "threshold", "one threshold over the importance of all channels: one policy", "amc.search.threshold:search"
    ),
    Searcher("uniform", "the same share of every site: one policy", "amc.search.uniform:search"),
)

SEARCHERS: Registry[Search] = Registry("searcher", "amc.searchers", _SEARCHERS)


def searchers() -> dict[str, Entry[Search]]:
    """All searchers by name, those of installed packages included.

    >>> searchers()["spdy"].reference
    'Frantar & Alistarh 2022, arXiv:2201.13096'
    """
    return SEARCHERS.entries()


def load_searcher(name: str) -> Search:
    """The searcher of that name, or the one that ``file.py:function`` names. Raises ConfigError."""
    return SEARCHERS.load(name)


def keeps_study(name: str) -> bool:
    """Whether a searcher keeps an Optuna study, which several processes can share."""
    entry = SEARCHERS.entry(name)
    return isinstance(entry, Searcher) and entry.study


def may_race(name: str) -> bool:
    """Whether a policy need not be read whole once it is clear how it compares with the best so far.

    A searcher of the user's own that needs all scores exactly has the attribute ``races = False``.
    """
    entry = SEARCHERS.entry(name)
    return entry.races if isinstance(entry, Searcher) else bool(getattr(entry.load(), "races", True))


def check_searcher(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The searcher's ``settings`` as it takes them. Raises ConfigError where there is none, or a setting is wrong."""
    return options(f"searcher {name}", load_searcher(name), settings)


def run_searcher(name: str, settings: Mapping[str, Any], problem: Problem, evaluations: int, seed: int) -> None:
    """Let a searcher propose. What one of the user's own throws is a ConfigError, in one line."""
    search, given = load_searcher(name), check_searcher(name, settings)
    try:
        search(problem, evaluations, seed, **given)
    except (AmcError, OSError, MemoryError):
        raise
    except Exception as error:
        if SEARCHERS.entry(name).own:
            raise
        raise ConfigError(f"the searcher {name} fails: {type(error).__name__}: {first_line(error)}") from error
    if not problem.evaluations:
        raise ConfigError(f"the searcher {name} evaluated no policy: it must call problem.evaluate(choice).")
