"""Regularised evolution (Real et al. 2019, arXiv:1802.01548) with crossover and repair to the budget."""

from __future__ import annotations

import math
from collections import deque
from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.runtime.registry import about
from amc.search.neighbours import crossed, neighbour


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    population: Annotated[int, about("policies in the population", ge=2)] = 16,
    tournament: Annotated[int, about("random policies of which the best becomes a parent", ge=1)] = 4,
) -> None:
    """Start with the uniform policy and random ones; then propose children, which replace the oldest policies."""
    rng, space = np.random.default_rng(seed), problem.space
    sites = len(space.names)
    alive: deque[Evaluation] = deque(maxlen=min(population, max(2, evaluations // 3)))
    for number in range(evaluations):
        if number < (alive.maxlen or 0):
            shares = np.ones(sites) if number == 0 else rng.uniform(0.2, 1.0, sites)
            choice = space.fit(shares)
        else:
            mother, father = (_parent(alive, tournament, rng) for _ in range(2))
            choice = neighbour(space, crossed(space, mother.choice, father.choice, rng), rng)
        alive.append(problem.evaluate(choice))


def _parent(alive: deque[Evaluation], tournament: int, rng: np.random.Generator) -> Evaluation:
    drawn = [alive[int(i)] for i in rng.integers(0, len(alive), tournament)]
    return max(drawn, key=lambda e: e.reward if math.isfinite(e.reward) else -math.inf)
