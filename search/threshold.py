"""Global pruning: one threshold on the importance of all channels of all sites, as most tools offer it.

The importance of a channel is the decrease of the site's estimated error (`Problem.site_error`) when the channel is
kept in addition to the more important ones, divided by the site's mean to make sites comparable. The most important
channels of the network are kept while the budget allows. (For sites of other kinds, a channel is a unit of size.)
"""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem
from amc.search.allocate import Floats, error_tables
from amc.space.budget import Space
from amc.space.sites import Choice


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the policy. Further evaluations repeat it, at no cost."""
    choice = above_threshold(problem.space, error_tables(problem))
    for _ in range(evaluations):
        problem.evaluate(choice)


def above_threshold(space: Space, tables: list[Floats]) -> Choice:
    """The policy that keeps the most important parts of all sites within the budget."""
    steps = sorted(
        (-importance, place, site)
        for site, (own, table) in enumerate(zip(space.sites, tables, strict=True))
        for place, importance in enumerate(_importance(np.array(own.sizes, np.float64), table), start=1)
    )
    places = 0 * space.lengths
    for _, place, site in steps:
        if places[site] == place - 1:
            places[site] = place
            if not bool(space.fits_at(places[None])[0]):
                places[site] -= 1
    return space.choice(places)


def _importance(sizes: Floats, table: Floats) -> Floats:
    """Importance per part at every step ``[K - 1]``, non-increasing, with mean 1 over the parts."""
    parts = np.diff(sizes)
    falling = np.minimum.accumulate(-np.diff(table) / parts)
    mean = (falling * parts).sum() / max(1.0, parts.sum())
    return np.asarray(falling / mean if mean > 0 else falling)
