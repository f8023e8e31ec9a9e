"""One threshold over the importance of all channels of all sites: the global pruning that most tools offer.

A channel's importance is what its site's estimated error (`Problem.site_error`) falls by when it is kept on top of the
more important ones, as a share of the site's mean, so that sites can be compared. The most important channels of the
network are kept while the budget allows.
"""

from __future__ import annotations

import numpy as np

from amc.evaluation.problem import Problem
from amc.search.allocate import Floats, error_tables
from amc.space.budget import Space
from amc.space.policy import Choice


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the one policy; more evaluations would repeat it, and cost nothing."""
    choice = above_threshold(problem.space, error_tables(problem))
    for _ in range(evaluations):
        problem.evaluate(choice)


def above_threshold(space: Space, tables: list[Floats]) -> Choice:
    """The policy that keeps the most important channels of all sites together."""
    steps = sorted(
        (-importance, place, site)
        for site, (settings, table) in enumerate(zip(space.settings, tables, strict=True))
        for place, importance in enumerate(_importance(np.array(settings, np.float64), table), start=1)
    )
    choice = list(space.smallest)
    for _, place, site in steps:
        wider = [*choice[:site], space.settings[site][place], *choice[site + 1 :]]
        if choice[site] == space.settings[site][place - 1] and bool(space.fits([wider])[0]):
            choice = wider
    return tuple(choice)


def _importance(settings: Floats, table: Floats) -> Floats:
    """Importance of a channel of every step ``[K - 1]``, falling, of mean 1 over the channels."""
    channels = np.diff(settings)
    falling = np.minimum.accumulate(-np.diff(table) / channels)
    mean = (falling * channels).sum() / max(1.0, channels.sum())
    return np.asarray(falling / mean if mean > 0 else falling)
