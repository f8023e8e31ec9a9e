"""Random policies near the budget: proportions drawn uniformly, then scaled together until they fit.

Drawing the ratios one after another and clipping at the budget, as AMC's warm-up does, gives policies far below it.
"""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem

_AHEAD = 32  # policies that are announced at a time


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose random policies."""
    rng, space = np.random.default_rng(seed), problem.space
    for done in range(0, evaluations, _AHEAD):
        count = min(_AHEAD, evaluations - done)
        choices = [space.fit(rng.uniform(0.1, 1.0, len(space.names))) for _ in range(count)]
        problem.announce(choices)
        for choice in choices:
            problem.evaluate(choice)
