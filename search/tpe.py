"""Optuna's TPE over the sites' proportions, which are then scaled together to the budget (see Space.fit)."""

from __future__ import annotations

import math

import optuna

from amc.problem import Problem

_LOW, _HIGH = 0.1, 1.0


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Start with the uniform policy, then let TPE propose proportions."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=min(10, 1 + evaluations // 4))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    names = [f"{number:03d} {name}" for number, name in enumerate(problem.space.names)]
    study.enqueue_trial(dict.fromkeys(names, _HIGH))
    for _ in range(evaluations):
        trial = study.ask()
        shares = [trial.suggest_float(name, _LOW, _HIGH) for name in names]
        found = problem.evaluate(problem.space.fit(shares))
        if math.isfinite(found.reward):
            study.tell(trial, found.reward)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
