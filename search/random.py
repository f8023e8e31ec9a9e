"""Random policies near the budget: proportions drawn uniformly, then scaled together until they fit.

Drawing every ratio on its own and clipping at the budget, as AMC's warm-up does, lands far below it.
"""

from __future__ import annotations

import numpy as np

from amc.problem import Problem


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose random policies."""
    rng = np.random.default_rng(seed)
    for _ in range(evaluations):
        shares = rng.uniform(0.1, 1.0, len(problem.space.names))
        problem.evaluate(problem.space.fit(shares))
