"""Optuna's samplers over the sites' proportions, which are then scaled together to the budget (see Space.fit)."""

from __future__ import annotations

import math
import warnings

import optuna

from amc.problem import Problem

_LOW, _HIGH = 0.1, 1.0


def tpe(problem: Problem, evaluations: int, seed: int) -> None:
    """Tree-structured Parzen estimator, all sites together."""
    startup = min(10, 1 + evaluations // 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=startup)
    _sample(problem, evaluations, sampler)


def gp(problem: Problem, evaluations: int, seed: int) -> None:
    """Gaussian process with expected improvement."""
    _sample(problem, evaluations, optuna.samplers.GPSampler(seed=seed, n_startup_trials=min(10, 1 + evaluations // 4)))


def cmaes(problem: Problem, evaluations: int, seed: int) -> None:
    """Covariance matrix adaptation."""
    _sample(problem, evaluations, optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False))


def qmc(problem: Problem, evaluations: int, seed: int) -> None:
    """Scrambled Sobol points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    _sample(problem, evaluations, sampler)


def _names(problem: Problem) -> list[str]:
    return [f"{number:03d} {name}" for number, name in enumerate(problem.space.names)]


def _sample(problem: Problem, evaluations: int, sampler: optuna.samplers.BaseSampler) -> None:
    """Start with the uniform policy, then let the sampler propose proportions."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    names = _names(problem)
    study.enqueue_trial(dict.fromkeys(names, _HIGH))
    proportion: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(_LOW, _HIGH)
    space = dict.fromkeys(names, proportion)
    for _ in range(evaluations):
        trial = study.ask(space)
        found = problem.evaluate(problem.space.fit([trial.params[name] for name in names]))
        if math.isfinite(found.reward):
            study.tell(trial, found.reward)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
