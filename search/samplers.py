"""Optuna's samplers over the sites' proportions, which are scaled together to the budget (see `Space.fit`).

NSGA-II and NSGA-III search the Pareto front of reward and cost at and below the budget. They have an additional
parameter, the position between the least possible cost and the budget, and the study has two objectives.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from pydantic import Field

from amc.config import AUTO, Auto, unless_auto
from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.runtime.registry import about
from amc.search.study import Design, fill
from amc.space.budget import Space
from amc.space.sites import Choice

_LOW, _HIGH = 0.1, 1.0


Startup = Annotated[
    Annotated[int, Field(ge=1)] | Auto, about("random trials before the model (auto: a quarter, at most 10)")
]
Population = Annotated[Annotated[int, Field(ge=2)] | Auto, about("policies per generation (auto: a fifth, at most 50)")]


def tpe(problem: Problem, evaluations: int, seed: int, *, startup: Startup = AUTO) -> None:
    """Tree-structured Parzen estimator, multivariate over all sites."""
    first, shared = _startup(startup, evaluations), problem.study is not None and problem.study.shared
    with _quiet():
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=first, constant_liar=shared)
    fill(problem, evaluations, sampler, RewardDesign(problem))


def gp(problem: Problem, evaluations: int, seed: int, *, startup: Startup = AUTO) -> None:
    """Gaussian process with expected improvement."""
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=_startup(startup, evaluations))
    fill(problem, evaluations, sampler, RewardDesign(problem))


def cmaes(problem: Problem, evaluations: int, seed: int) -> None:
    """Covariance matrix adaptation."""
    sampler = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    fill(problem, evaluations, sampler, RewardDesign(problem))


def qmc(problem: Problem, evaluations: int, seed: int) -> None:
    """Scrambled Sobol points."""
    with _quiet():
        sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    fill(problem, evaluations, sampler, RewardDesign(problem))


def nsga2(problem: Problem, evaluations: int, seed: int, *, population: Population = AUTO) -> None:
    """Non-dominated sorting with crowding distances (Deb et al. 2002)."""
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=_population(population, evaluations))
    fill(problem, evaluations, sampler, FrontDesign(problem))


def nsga3(problem: Problem, evaluations: int, seed: int, *, population: Population = AUTO) -> None:
    """Non-dominated sorting with reference points (Deb & Jain 2014)."""
    size = _population(population, evaluations)
    with _quiet():
        sampler: BaseSampler = optuna.samplers.NSGAIIISampler(
            seed=seed, population_size=size, dividing_parameter=size - 1
        )
    fill(problem, evaluations, sampler, FrontDesign(problem))


class RewardDesign(Design):
    """One parameter per site, and the reward as objective. The first policy is the uniform one."""

    def __init__(self, problem: Problem) -> None:
        self._space = problem.space
        sites = _site_parameters(problem)
        super().__init__(sites, dict.fromkeys(sites, _HIGH))

    def choice(self, parameters: Mapping[str, float]) -> Choice:
        return self._space.fit([parameters[name] for name in self.parameters])

    def values(self, evaluation: Evaluation) -> Sequence[float]:
        return [evaluation.reward]


class FrontDesign(Design):
    """One parameter per site and one for the share of the budget. The objectives are reward and cost."""

    objectives = (("reward", "maximize"), ("share of the budget used", "minimize"))

    def __init__(self, problem: Problem) -> None:
        self._problem, self._sites = problem, _site_parameters(problem)
        parameters = {"budget": FloatDistribution(0.0, 1.0), **self._sites}
        super().__init__(parameters, {"budget": 1.0, **dict.fromkeys(self._sites, _HIGH)})

    def choice(self, parameters: Mapping[str, float]) -> Choice:
        space = tightened(self._problem.space, parameters["budget"])
        return space.fit([parameters[name] for name in self._sites])

    def values(self, evaluation: Evaluation) -> Sequence[float]:
        return [evaluation.reward, self._problem.cost(evaluation)]


def tightened(space: Space, share: float) -> Space:
    """The space with limits at ``share`` of the way from the least possible costs to the budget.

    >>> from amc.envs.toy import toy_problem
    >>> space = toy_problem(sites=2)[0].space
    >>> least = space.costs(space.smallest)["macs"]
    >>> tightened(space, 0.0).limits["macs"] == least < tightened(space, 0.5).limits["macs"] < space.limits["macs"]
    True
    """
    least = space.costs(space.smallest)
    limits = {name: least[name] + share * (limit - least[name]) for name, limit in space.limits.items()}
    return replace(space, limits=limits)


def _site_parameters(problem: Problem) -> dict[str, FloatDistribution]:
    names = [f"{number:03d} {name}" for number, name in enumerate(problem.space.names)]
    return dict.fromkeys(names, FloatDistribution(_LOW, _HIGH))


def _startup(asked: int | Auto, evaluations: int) -> int:
    """Number of random trials before a model is fitted."""
    return unless_auto(asked) or min(10, 1 + evaluations // 4)


def _population(asked: int | Auto, evaluations: int) -> int:
    """Size of the population: Optuna's default of 50, or less for at least five generations."""
    return unless_auto(asked) or max(4, min(50, evaluations // 5))


def _quiet() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)
