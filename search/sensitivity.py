"""Greedy pruning by measured sensitivities (as in Li et al. 2017, arXiv:1608.08710, section 3.2).

The original narrows one layer at a time in the whole network; what is over budget cannot be evaluated here, so every
site is cut alone in the uniform policy, to one, two or three earlier settings. How much the loss rises scales the
site's estimated error (`Problem.site_error`), which also tells of the settings that were not tried. The policy of least
scaled error comes next; what evaluations are left cut the site that is expected to lose least by it, and give others
what that frees.
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

_LEAST = 0.05  # of the median sensitivity: noise must not make a site worthless


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    points: Annotated[int, about("most widths that are measured of a site", ge=1)] = 3,
) -> None:
    """Spend about half of the evaluations on the curves, and the others on policies made of them."""
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
    """How much a site's estimated error counts ``[S]``: least squares through the measured points."""
    space, sites = problem.space, len(tables)
    rises: dict[int, list[tuple[float, float]]] = {}
    order = sorted(range(sites), key=lambda s: (-problem.features[s].macs, s))  # the dearest sites matter most
    plan = [(site, part) for part in range(1, points + 1) for site in order][:evaluations]
    for site, part in plan:
        places = space.positions(base.choice)
        place = int(places[site])
        lower = places[site] = place - max(1, place * part // (points + 1)) if place else place
        if not bool(space.fits_at(places[None])[0]):  # an earlier setting may cost more: on a device, time
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
    """Policies with one site cut by one to three positions and others given more, the most promising first."""
    space = problem.space
    moves = {narrowed(space, choice, site, step) for site in range(len(choice)) for step in (1, 2, 3)}
    ranked = [tuple(space.positions(moved).tolist()) for moved in moves]

    def expected(places: tuple[int, ...]) -> float:
        return sum(float(w * t[place]) for w, t, place in zip(weights, tables, places, strict=True))

    return [space.choice(places) for places in sorted(ranked, key=lambda places: (expected(places), places))]
