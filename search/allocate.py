"""The allocator: the policy of least estimated error within the budget, found without a single evaluation.

A site's error at a width is known in closed form from the calibration moments (`Problem.site_error`). From the
whole network, the site is narrowed next that loses least error for what it saves, until every limit is met; what
is left of the budget then goes where it helps most. Costs are exact, and sites that share a layer are accounted
for, since every step asks the resource model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc.budget import Space
from amc.policy import Choice
from amc.problem import Problem

Floats = NDArray[np.float64]


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the allocated policy; more evaluations would repeat it, and cost nothing."""
    choice = decode(problem.space, error_tables(problem), np.ones(len(problem.space.names)))
    for _ in range(evaluations):
        problem.evaluate(choice)


def error_tables(problem: Problem) -> list[Floats]:
    """For every site the error of each setting, made non-increasing in the setting."""
    tables = []
    for site, settings in enumerate(problem.space.settings):
        errors = [problem.site_error(site, setting) for setting in settings]
        tables.append(np.maximum.accumulate(np.array(errors)[::-1])[::-1])
    return tables


def decode(space: Space, tables: Sequence[Floats], coefficients: Floats) -> Choice:
    """The policy of least error, where site s counts ``coefficients[s]`` times its table."""
    places = [len(settings) - 1 for settings in space.settings]
    while not bool(space.fits([_choice(space, places)])[0]):
        _narrow(space, tables, coefficients, places)
    while _widen(space, tables, coefficients, places):
        pass
    return _choice(space, places)


def _choice(space: Space, places: Sequence[int]) -> Choice:
    return tuple(settings[place] for settings, place in zip(space.settings, places, strict=True))


def _neighbours(space: Space, places: Sequence[int], step: int) -> tuple[list[int], list[Choice]]:
    """The sites that can go one step, and the policies they lead to."""
    sites, choices = [], []
    for site, place in enumerate(places):
        if 0 <= place + step < len(space.settings[site]):
            moved = [*places[:site], place + step, *places[site + 1 :]]
            sites.append(site)
            choices.append(_choice(space, moved))
    return sites, choices


def _excess(space: Space, choices: Sequence[Choice]) -> Floats:
    """How far each policy is over the budget: the shares by which it exceeds each limit, summed."""
    costs = space.model.costs(choices)
    over = [np.maximum(0.0, costs[name] / limit - 1) for name, limit in space.limits.items()]
    return np.asarray(np.sum(over, axis=0))


def _narrow(space: Space, tables: Sequence[Floats], coefficients: Floats, places: list[int]) -> None:
    sites, choices = _neighbours(space, places, -1)
    saved = _excess(space, [_choice(space, places)])[0] - _excess(space, choices)
    lost = np.array([coefficients[s] * (tables[s][places[s] - 1] - tables[s][places[s]]) for s in sites])
    price = np.where(saved > 0, lost / np.maximum(saved, 1e-300), np.inf)
    if np.isinf(price).all():  # no single step saves anything (a peak held by several sites): the cheapest goes
        price = lost
    places[sites[int(np.argmin(price))]] -= 1


def _widen(space: Space, tables: Sequence[Floats], coefficients: Floats, places: list[int]) -> bool:
    sites, choices = _neighbours(space, places, +1)
    if not sites:
        return False
    won = np.array([coefficients[s] * (tables[s][places[s]] - tables[s][places[s] + 1]) for s in sites])
    won[~space.fits(choices)] = -1
    if won.max() < 0:
        return False
    places[sites[int(np.argmax(won))]] += 1
    return True
