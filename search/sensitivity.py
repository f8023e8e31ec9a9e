"""Greedy pruning by measured sensitivities (as in Li et al. 2017, arXiv:1608.08710, section 3.2).

The original narrows one layer at a time in the whole network; what is over budget cannot be evaluated here, so every
site is narrowed alone in the uniform policy, down to one, two or three widths. How much the loss rises scales the
site's estimated error (`Problem.site_error`), which also tells of the widths that were not tried. The policy of least
scaled error comes next; what evaluations are left move channels from the site that is expected to miss them least.
"""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.search.allocate import Floats, decode, error_tables
from amc.search.neighbours import narrowed

_POINTS = 3  # widths measured a site, at most
_LEAST = 0.05  # of the median sensitivity: noise must not make a site worthless


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Spend about half of the evaluations on the curves, and the others on policies made of them."""
    space, tables = problem.space, error_tables(problem)
    end = problem.proposals + evaluations
    base = problem.evaluate(space.fit(np.ones(len(space.names))))
    sensitivities = _measure(problem, base, tables, (evaluations - 1) // 2)
    if problem.proposals < end:
        problem.evaluate(decode(space, tables, sensitivities))
    tried: set[tuple[int, ...]] = set()
    while problem.proposals < end:
        best = (problem.best(1) or [base])[0].choice
        moves = _moves(problem, best, tables, sensitivities)
        new = next((c for c in moves if c not in tried and c != best), best)
        tried.add(new)
        problem.evaluate(new)


def _measure(problem: Problem, base: Evaluation, tables: list[Floats], evaluations: int) -> Floats:
    """How much a site's estimated error counts ``[S]``: least squares through the measured points."""
    space, sites = problem.space, len(tables)
    rises: dict[int, list[tuple[float, float]]] = {}
    order = sorted(range(sites), key=lambda s: (-problem.features[s].macs, s))  # the dearest sites matter most
    plan = [(site, part) for part in range(1, _POINTS + 1) for site in order][:evaluations]
    for site, part in plan:
        place = space.settings[site].index(base.choice[site])
        lower = place - max(1, place * part // (_POINTS + 1)) if place else place
        narrower = (*base.choice[:site], space.settings[site][lower], *base.choice[site + 1 :])
        if not bool(space.fits([narrower])[0]):  # on a device a narrower site can be slower
            continue
        found = problem.evaluate(narrower)
        expected = tables[site][lower] - tables[site][place]
        if found.error is None and base.error is None and expected > 0:
            rises.setdefault(site, []).append((expected, max(0.0, found.loss - base.loss)))
    slopes = {s: sum(e * r for e, r in points) / sum(e * e for e, _ in points) for s, points in rises.items()}
    usual = float(np.median(list(slopes.values()))) if slopes else 1.0
    usual = usual if usual > 0 else 1.0
    return np.array([max(slopes.get(s, usual), _LEAST * usual) for s in range(sites)])


def _moves(problem: Problem, choice: tuple[int, ...], tables: list[Floats], weights: Floats) -> list[tuple[int, ...]]:
    """Policies with one site narrowed by one to three steps and others widened, the most promising first."""
    space = problem.space
    moves = {narrowed(space, choice, site, step) for site in range(len(choice)) for step in (1, 2, 3)}

    def expected(moved: tuple[int, ...]) -> float:
        return sum(float(w * t[s.index(c)]) for w, t, s, c in zip(weights, tables, space.settings, moved, strict=True))

    return sorted(moves, key=lambda moved: (expected(moved), moved))
