"""The baseline for every search: the same share of every site."""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the uniform policy. Further evaluations repeat it, at no cost."""
    choice = problem.space.fit(np.ones(len(problem.space.names)))
    for _ in range(evaluations):
        problem.evaluate(choice)
