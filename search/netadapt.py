"""NetAdapt (Yang et al. 2018, arXiv:1804.03230), within the budget.

NetAdapt starts from the original network and narrows it down to the budget. Policies over the budget cannot be
evaluated here, so this version starts from the uniform policy and keeps the principle: in each round every site in turn
is narrowed by one step, the others are widened by what that frees, and the best of these policies is kept. Steps grow
when no policy is better.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.search.neighbours import narrowed


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    longest_step: Annotated[int, about("most positions that a site is narrowed by", ge=1)] = 3,
) -> None:
    """Propose the uniform policy, then one policy per site in every round."""
    rng, space = np.random.default_rng(seed), problem.space
    best = problem.evaluate(space.fit(np.ones(len(space.names))))
    spent, step = 1, 1
    while spent < evaluations:
        sites = rng.permutation(len(space.names))[: evaluations - spent]
        choices = [narrowed(space, best.choice, int(site), step) for site in sites]
        problem.announce(choices)
        tried = [problem.evaluate(choice) for choice in choices]
        spent += len(tried)
        winner = max(tried, key=lambda e: (e.reward, -e.loss))
        step = 1 if winner.reward > best.reward else step % longest_step + 1
        best = max(best, winner, key=lambda e: (e.reward, -e.loss))
