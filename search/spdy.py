"""SPDY (Frantar & Alistarh 2022, arXiv:2201.13096): search the allocator's coefficients, one per site.

Additive errors of single sites miss how layers act on each other. A coefficient per site makes up for that; the
allocator turns coefficients into a policy that meets the budget, so every proposal is a sensible one. Started with
all ones; then a (1+1) search that perturbs the best coefficients, some of them at first, fewer towards the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.search.allocate import Floats, error_tables, fast_decoder

TRIES = 30
"""For a policy that was not evaluated before."""


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    spread: Annotated[float, about("deviation of a perturbation, in the logarithm of a coefficient", gt=0)] = 1.0,
    tries: Annotated[int, about("draws for a policy that was not evaluated before", ge=1)] = TRIES,
) -> None:
    """Propose the allocated policy, the uniform one, then policies from perturbed coefficients."""
    climb(problem, error_tables(problem), evaluations, seed, spread, tries)


def perturbation(rng: np.random.Generator, sites: int, share: float, spread: float = 1.0) -> Floats:
    """What to add to the logarithms of coefficients ``[S]``: not 0 at about this share of the sites, or two."""
    changed = rng.random(sites) < max(2 / sites, share)
    return np.where(changed, rng.normal(0, spread, sites), 0.0)


def climb(
    problem: Problem,
    tables: Sequence[Floats],
    evaluations: int,
    seed: int,
    spread: float = 1.0,
    tries: int = TRIES,
) -> list[tuple[float, Floats]]:
    """The search; gives, of every policy that coefficients led to, the reward and their logarithms ``[S]``."""
    rng, space, sites = np.random.default_rng(seed), problem.space, len(problem.space.names)
    best, decode = np.zeros(sites), fast_decoder(space, tables)
    reward = problem.evaluate(decode(np.exp(best))).reward
    found = [(reward, best)]
    if evaluations > 1:
        problem.evaluate(space.fit(np.ones(sites)))
    seen = {e.choice for e in problem.evaluations}
    for done in range(2, evaluations):
        share = 0.5 * (1 - done / evaluations)
        for _ in range(tries):
            step = perturbation(rng, sites, share, spread)
            choice = decode(np.exp(best + step))
            if choice not in seen:
                break
        seen.add(choice)
        found.append((problem.evaluate(choice).reward, best + step))
        if found[-1][0] >= reward:
            reward, best = found[-1]
    return found
