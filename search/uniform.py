"""The baseline that every search has to beat: the same share of every site."""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the uniform policy; more evaluations would repeat it, and cost nothing."""
    choice = problem.space.fit(np.ones(len(problem.space.names)))
    for _ in range(evaluations):
        problem.evaluate(choice)
