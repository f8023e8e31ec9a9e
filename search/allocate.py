"""The allocator: the policy with the least estimated error within the budget, computed without evaluations.

The error of a site at a setting is estimated without an evaluation (`Problem.site_error`); for channels it has a closed
form in the calibration moments. The sum over sites is minimised exactly (see `amc.search.exact`): by dynamic
programming, or by an integer program for several limits or too many cases. Where neither is possible (peak memory is
not such a sum), a greedy algorithm is used: starting from the original, it narrows the site with the
least error per saved cost until every limit holds, and then spends what is left of the budget where it helps most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from amc.evaluation.problem import Problem
from amc.search.exact import solve, solve_front, solve_programme
from amc.search.terms import TermCosts, term_costs
from amc.space.budget import Space
from amc.space.sites import Choice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TRIES = 5
_PRICES = 12
_ROUNDS = 2  # of linearisation; the policy hardly changes afterwards


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the allocated policy. Further evaluations repeat it, at no cost."""
    choice = decode(problem.space, error_tables(problem), np.ones(len(problem.space.names)))
    for _ in range(evaluations):
        problem.evaluate(choice)


def error_tables(problem: Problem) -> list[Floats]:
    """Errors of the settings of every site, made non-increasing in the setting and scaled to a total of 1.

    Without the scale, solvers could mistake the errors of a well-trained network, which are small, for rounding errors.
    """
    tables = []
    for site, settings in enumerate(problem.space.settings):
        errors = [problem.site_error(site, setting) for setting in settings]
        tables.append(np.maximum.accumulate(np.array(errors)[::-1])[::-1])
    whole = sum(float(table[0]) for table in tables)
    tables = [table / whole for table in tables] if whole > 0 else tables
    return _with_time(problem, tables) if problem.latency_weight else tables


def _with_time(problem: Problem, errors: list[Floats]) -> list[Floats]:
    """Add the value of every setting's latency to its error, linearised at the policy that this leads to."""
    assert problem.latency_weight is not None
    space, tables = problem.space, errors
    for _ in range(_ROUNDS):
        policy = decode(space, tables, np.ones(len(tables)))
        error = float(sum(t[p] for t, p in zip(errors, space.positions(policy), strict=True)))
        prices = problem.latency_weight.prices(space, policy, error)
        tables = [e + p for e, p in zip(errors, prices, strict=True)]
    return tables


def decode(space: Space, tables: Sequence[Floats], coefficients: Floats) -> Choice:
    """The policy with the least error, where the table of site s is multiplied by ``coefficients[s]``."""
    errors = [c * table for c, table in zip(coefficients, tables, strict=True)]
    return space.canonical(_exact(space, errors) or greedy_decode(space, errors))


def fast_decoder(space: Space, tables: Sequence[Floats]) -> Callable[[Floats], Choice]:
    """`decode` for frequent calls: greedy where the exact solution needs more than dynamic programming."""
    exact = len({*space.limits} - {"branches"}) <= 1 and _exact(space, tables, programme=False) is not None
    return partial(_decode_fast, space, tables, exact)


def _decode_fast(space: Space, tables: Sequence[Floats], exact: bool, coefficients: Floats) -> Choice:
    errors = [c * table for c, table in zip(coefficients, tables, strict=True)]
    found = _exact(space, errors, programme=False) if exact else None
    return space.canonical(found or greedy_decode(space, errors))


def front(space: Space, tables: Sequence[Floats], shares: Sequence[float]) -> list[Choice]:
    """The policies with the least error at many budgets, given as ``shares`` of the space's only limit.

    Raises BudgetError if a budget cannot be reached, and ValueError if the space has more than one limit.
    """
    if len(space.limits) != 1:
        raise ValueError(f"a front runs along one limit, but there are {', '.join(space.limits)}")
    ((resource, limit),) = space.limits.items()
    spaces = [replace(space, limits={resource: share * limit}) for share in shares]
    costs = _decomposed(space, resource)
    solved = solve_front(space, costs, tables, max(shares) * limit) if costs else None
    found = [solved.within(s.limits[resource]) if solved else None for s in spaces]
    return [
        choice if choice and bool(s.fits([choice])[0]) else decode(s, tables, np.ones(len(tables)))
        for s, choice in zip(spaces, found, strict=True)
    ]


def _decomposed(space: Space, resource: str) -> TermCosts | None:
    return _known_terms(space, resource, space.costs(space.full)[resource])


@lru_cache(maxsize=8)
def _known_terms(space: Space, resource: str, whole: float) -> TermCosts | None:
    """`term_costs`, cached. ``whole``, the original's cost, is only a part of the key: corrected costs change it."""
    return term_costs(space, resource)


def _exact(space: Space, errors: Sequence[Floats], programme: bool = True) -> Choice | None:
    """The optimal policy, or None if the costs do not allow an exact solution."""
    if "branches" in space.limits and len(space.limits) > 1:
        return _with_branches(space, errors, programme)
    costs = [_decomposed(space, resource) for resource in space.limits]
    known = [c for c in costs if c is not None]
    if len(known) < len(costs):
        return None
    limits = np.array(list(space.limits.values()))
    for _ in range(_TRIES):  # once, or again with lower limits if the decomposition of costs is off by a few bytes
        choice = solve(space, known[0], errors, float(limits[0])) if len(known) == 1 else None
        if choice is None and programme:
            choice = solve_programme(space, known, errors, limits.tolist())
        if choice is None:
            return None
        over = np.array([space.costs(choice)[name] - limit for name, limit in space.limits.items()])
        if (over <= 0).all():
            return choice
        limits = limits - np.maximum(over, 0) - 1e-9 * limits
    return None


def _with_branches(space: Space, errors: Sequence[Floats], programme: bool) -> Choice | None:
    """The best policy under the limit on branches: bisection for the lowest price per kept branch that meets it."""
    free = _without(space, "branches")
    kept = [np.array(s.sizes) > 0 if s.sizes[0] == 0 else np.zeros(len(s.sizes)) for s in space.sites]
    price, low, high = 0.0, 0.0, 1.01 * max(float(table[0]) for table in errors)
    best = None
    for _ in range(_PRICES):
        choice = _exact(free, [e + price * k for e, k in zip(errors, kept, strict=True)], programme)
        if choice is None:
            return None
        if bool(space.fits([choice])[0]):
            best, high = choice, price
        else:
            low = price
        if low == high:
            break
        price = (low + high) / 2
    return best


@lru_cache(maxsize=8)
def _without(space: Space, resource: str) -> Space:
    return replace(space, limits={name: limit for name, limit in space.limits.items() if name != resource})


def greedy_decode(space: Space, errors: Sequence[Floats]) -> Choice:
    """A policy within the budget by greedy steps: narrow until it fits, then widen while that helps."""
    places = space.lengths - 1
    while places.any() and not bool(space.fits_at(places[None])[0]):
        _narrow(space, errors, places)
    while _widen(space, errors, places):
        pass
    return space.choice(places)


def _neighbours(space: Space, places: Ints, step: int) -> tuple[Ints, Ints]:
    """The sites ``[N]`` that can move by ``step``, and the resulting positions ``[N, S]``."""
    sites = np.flatnonzero((places + step >= 0) & (places + step < space.lengths))
    moved = np.repeat(places[None], len(sites), 0)
    moved[np.arange(len(sites)), sites] += step
    return sites, moved


def _excess(space: Space, positions: Ints) -> Floats:
    """How far each policy is over the budget: the sum of the relative excesses over all limits."""
    costs = space.costs_at(positions)
    over = [np.maximum(0.0, costs[name] / limit - 1) for name, limit in space.limits.items()]
    return np.asarray(np.sum(over, axis=0))


def _narrow(space: Space, errors: Sequence[Floats], places: Ints) -> None:
    """Narrow the site with the least additional error per saved cost by one position, in place."""
    sites, moved = _neighbours(space, places, -1)
    saved = _excess(space, places[None])[0] - _excess(space, moved)
    lost = np.array([errors[s][places[s] - 1] - errors[s][places[s]] for s in sites])
    price = np.where(saved > 0, lost / np.maximum(saved, 1e-300), np.inf)
    if np.isinf(price).all():  # no single step saves anything (several sites share the peak): take the least error
        price = lost
    places[sites[int(np.argmin(price))]] -= 1


def _widen(space: Space, errors: Sequence[Floats], places: Ints) -> bool:
    """Widen the site where that reduces the error most, in place. False if no site can be widened."""
    sites, moved = _neighbours(space, places, +1)
    if not len(sites):
        return False
    won = np.array([errors[s][places[s]] - errors[s][places[s] + 1] for s in sites])
    won[~space.fits_at(moved)] = -1
    if won.max() < 0:
        return False
    places[sites[int(np.argmax(won))]] += 1
    return True
