"""Simulated annealing (Kirkpatrick et al. 1983) over neighbouring policies, from the uniform one.

The temperature starts at the spread of the first moves' rewards and decreases to 1 % of it.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.search.neighbours import neighbour


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    moves: Annotated[int, about("largest number of sites that a move changes", ge=1)] = 2,
    coldest: Annotated[float, about("final temperature as a share of the first", gt=0, le=1)] = 0.01,
) -> None:
    """Propose neighbours of the current policy; worse ones are accepted with a probability that decreases."""
    rng, space = np.random.default_rng(seed), problem.space
    current = problem.evaluate(space.fit(np.ones(len(space.names))))
    warm = 0.0
    for done in range(1, evaluations):
        found = problem.evaluate(neighbour(space, current.choice, rng, moves))
        if not math.isfinite(found.reward):
            continue
        if not math.isfinite(current.reward):
            current = found
            continue
        warm = max(warm, abs(found.reward - current.reward)) if done <= 5 else warm
        temperature = warm * coldest ** (done / evaluations)
        worse = current.reward - found.reward
        if worse <= 0 or (temperature > 0 and rng.random() < math.exp(-worse / temperature)):
            current = found
