"""One threshold over the importance of all channels of all sites: the global pruning that most tools offer.

The importance of a part of a site (of a channel group: a channel) is what the site's estimated error
(`Problem.site_error`) falls by when it is kept on top of the more important ones, as a share of the site's mean, so
that sites can be compared. The most important parts of the network are kept while the budget allows.
"""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem
from amc.search.allocate import Floats, error_tables
from amc.space.budget import Space
from amc.space.sites import Choice


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the one policy; more evaluations would repeat it, and cost nothing."""
    choice = above_threshold(problem.space, error_tables(problem))
    for _ in range(evaluations):
        problem.evaluate(choice)


def above_threshold(space: Space, tables: list[Floats]) -> Choice:
    """The policy that keeps the most important parts of all sites together."""
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
    """Importance of a part of every step ``[K - 1]``, falling, of mean 1 over the parts."""
    parts = np.diff(sizes)
    falling = np.minimum.accumulate(-np.diff(table) / parts)
    mean = (falling * parts).sum() / max(1.0, parts.sum())
    return np.asarray(falling / mean if mean > 0 else falling)
