"""Greedy pruning by measured sensitivities (as in Li et al. 2017, arXiv:1608.08710, section 3.2).

The paper narrows one layer at a time in the original network. Policies over the budget cannot be evaluated here, so
each site is narrowed in the uniform policy, to one, two or three earlier settings. The measured increase of the loss
scales the site's estimated error (`Problem.site_error`), which covers settings that were not measured. The next
proposal is the policy with the least scaled error. The remaining evaluations narrow the site with the least expected
error, and widen others by what that frees.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.runtime.registry import about
from amc.search.allocate import Floats, decode, error_tables
from amc.search.neighbours import narrowed
from amc.space.sites import Choice

_LEAST = 0.05  # share of the median sensitivity: noise must not reduce a site's error to 0


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    points: Annotated[int, about("most settings that are measured per site", ge=1)] = 3,
) -> None:
    """Spend about half of the evaluations on sensitivities, and the rest on policies derived from them."""
    space, tables = problem.space, error_tables(problem)
    end = problem.proposals + evaluations
    base = problem.evaluate(space.fit(np.ones(len(space.names))))
    sensitivities = _measure(problem, base, tables, (evaluations - 1) // 2, points)
    if problem.proposals < end:
        problem.evaluate(decode(space, tables, sensitivities))
    tried: set[Choice] = set()
    while problem.proposals < end:
        best = (problem.best(1) or [base])[0].choice
        moves = _moves(problem, best, tables, sensitivities)
        new = next((c for c in moves if c not in tried and c != best), best)
        tried.add(new)
        problem.evaluate(new)


def _measure(problem: Problem, base: Evaluation, tables: list[Floats], evaluations: int, points: int) -> Floats:
    """Factors ``[S]`` of the sites' estimated errors: least squares through the measured points."""
    space, sites = problem.space, len(tables)
    rises: dict[int, list[tuple[float, float]]] = {}
    order = sorted(range(sites), key=lambda s: (-problem.features[s].macs, s))  # the most expensive sites first
    plan = [(site, part) for part in range(1, points + 1) for site in order][:evaluations]
    for site, part in plan:
        places = space.positions(base.choice)
        place = int(places[site])
        lower = places[site] = place - max(1, place * part // (points + 1)) if place else place
        if not bool(space.fits_at(places[None])[0]):  # an earlier setting may have a higher latency
            continue
        found = problem.evaluate(space.choice(places))
        expected = tables[site][lower] - tables[site][place]
        if found.error is None and base.error is None and expected > 0:
            rises.setdefault(site, []).append((expected, max(0.0, found.loss - base.loss)))
    slopes = {s: sum(e * r for e, r in seen) / sum(e * e for e, _ in seen) for s, seen in rises.items()}
    usual = float(np.median(list(slopes.values()))) if slopes else 1.0
    usual = usual if usual > 0 else 1.0
    return np.array([max(slopes.get(s, usual), _LEAST * usual) for s in range(sites)])


def _moves(problem: Problem, choice: Choice, tables: list[Floats], weights: Floats) -> list[Choice]:
    """Policies with one site narrowed by one to three positions and others widened, by increasing expected error."""
    space = problem.space
    moves = {narrowed(space, choice, site, step) for site in range(len(choice)) for step in (1, 2, 3)}
    positions = [tuple(space.positions(moved).tolist()) for moved in moves]
    ranked = sorted((_expected_error(tables, weights, places), places) for places in positions)
    return [space.choice(places) for _, places in ranked]


def _expected_error(tables: list[Floats], weights: Floats, places: tuple[int, ...]) -> float:
    return sum(float(w * t[place]) for w, t, place in zip(weights, tables, places, strict=True))
