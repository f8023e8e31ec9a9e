"""SPDY (Frantar & Alistarh 2022, arXiv:2201.13096): search the allocator's coefficients, one per site.

A sum of errors of single sites ignores the interaction between layers. A coefficient per site compensates for that. The
allocator turns coefficients into a policy within the budget, so every proposal is plausible. The search starts with all
coefficients at 1. It is a (1+1) search that perturbs the best coefficients, fewer of them towards the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.search.allocate import Floats, error_tables, fast_decoder

TRIES = 30
"""Most draws for a policy that was not evaluated yet."""


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    spread: Annotated[float, about("standard deviation of a perturbation of a coefficient's logarithm", gt=0)] = 1.0,
    tries: Annotated[int, about("most draws for a policy that was not evaluated yet", ge=1)] = TRIES,
) -> None:
    """Propose the allocated policy, the uniform one, then policies from perturbed coefficients."""
    climb(problem, error_tables(problem), evaluations, seed, spread, tries)


def perturbation(rng: np.random.Generator, sites: int, share: float, spread: float = 1.0) -> Floats:
    """A perturbation ``[S]`` of the logarithms of coefficients: not 0 at about this share of the sites, or at two."""
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
    """Run the search; returns reward and logarithms of coefficients ``[S]`` for every policy made from coefficients."""
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
