"""The allocator: the policy of least estimated error within the budget, found without a single evaluation.

A site's error at a setting is known without an evaluation (`Problem.site_error`); for channels it follows in closed
form from the calibration moments. The sum over the sites is minimised exactly (see `amc.search.exact`): by dynamic
programming, or by an integer programme where there are
several limits or too many cases. Where neither can be (peak memory is no sum over pairs of sites), greedy steps decide:
from the whole network, the site is narrowed next that loses least error for what it saves, until every limit is met;
what is left of the budget then goes where it helps most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from amc.evaluation.problem import Problem
from amc.search.exact import PairCosts, pair_costs, solve, solve_front, solve_programme
from amc.space.budget import Space
from amc.space.sites import Choice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TRIES = 5
_PRICES = 12
_ROUNDS = 2  # after which the policy hardly changes


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Propose the allocated policy; more evaluations would repeat it, and cost nothing."""
    choice = decode(problem.space, error_tables(problem), np.ones(len(problem.space.names)))
    for _ in range(evaluations):
        problem.evaluate(choice)


def error_tables(problem: Problem) -> list[Floats]:
    """For every site the error of each setting, made non-increasing in the setting, as shares of all that can be lost.

    A well-trained network's loss minds little of anything: solvers would take its errors for round-off.
    """
    tables = []
    for site, settings in enumerate(problem.space.settings):
        errors = [problem.site_error(site, setting) for setting in settings]
        tables.append(np.maximum.accumulate(np.array(errors)[::-1])[::-1])
    whole = sum(float(table[0]) for table in tables)
    tables = [table / whole for table in tables] if whole > 0 else tables
    return _with_time(problem, tables) if problem.latency_weight else tables


def _with_time(problem: Problem, errors: list[Floats]) -> list[Floats]:
    """To every setting's error is added what its time is worth, around the policy that the sums lead to."""
    assert problem.latency_weight is not None
    space, tables = problem.space, errors
    for _ in range(_ROUNDS):
        policy = decode(space, tables, np.ones(len(tables)))
        error = float(sum(t[p] for t, p in zip(errors, space.positions(policy), strict=True)))
        prices = problem.latency_weight.prices(space, policy, error)
        tables = [e + p for e, p in zip(errors, prices, strict=True)]
    return tables


def decode(space: Space, tables: Sequence[Floats], coefficients: Floats) -> Choice:
    """The policy of least error, where site s counts ``coefficients[s]`` times its table."""
    errors = [c * table for c, table in zip(coefficients, tables, strict=True)]
    return _exact(space, errors) or greedy_decode(space, errors)


def fast_decoder(space: Space, tables: Sequence[Floats]) -> Callable[[Floats], Choice]:
    """`decode` for one who asks often: where exactness takes more than dynamic programming, greedy steps decide."""
    fast = len({*space.limits} - {"branches"}) <= 1 and _exact(space, tables, programme=False) is not None

    def decoded(coefficients: Floats) -> Choice:
        errors = [c * table for c, table in zip(coefficients, tables, strict=True)]
        return (_exact(space, errors, programme=False) if fast else None) or greedy_decode(space, errors)

    return decoded


def front(space: Space, tables: Sequence[Floats], shares: Sequence[float]) -> list[Choice]:
    """From one table the policies for many budgets, each the least error at ``share`` of the space's one limit.

    Raises BudgetError where a budget cannot be reached, and ValueError where the space has more than one limit.
    """
    if len(space.limits) != 1:
        raise ValueError(f"a front runs along one limit, but there are {', '.join(space.limits)}")
    ((resource, limit),) = space.limits.items()
    spaces = [replace(space, limits={resource: share * limit}) for share in shares]
    costs = _taken_apart(space, resource)
    solved = solve_front(space, costs, tables, max(shares) * limit) if costs else None
    found = [solved.within(s.limits[resource]) if solved else None for s in spaces]
    return [
        choice if choice and bool(s.fits([choice])[0]) else decode(s, tables, np.ones(len(tables)))
        for s, choice in zip(spaces, found, strict=True)
    ]


def _taken_apart(space: Space, resource: str) -> PairCosts | None:
    return _pair_costs(space, resource, space.costs(space.full)[resource])


@lru_cache(maxsize=8)
def _pair_costs(space: Space, resource: str, whole: float) -> PairCosts | None:
    """``whole``, what the original costs, changes where costs are corrected during a search."""
    return pair_costs(space, resource)


def _exact(space: Space, errors: Sequence[Floats], programme: bool = True) -> Choice | None:
    """The best policy, or None where the costs do not allow finding it."""
    if "branches" in space.limits and len(space.limits) > 1:
        return _with_branches(space, errors, programme)
    costs = [_taken_apart(space, resource) for resource in space.limits]
    known = [c for c in costs if c is not None]
    if len(known) < len(costs):
        return None
    limits = np.array(list(space.limits.values()))
    for _ in range(_TRIES):  # once; again where the costs were taken apart but for a few bytes
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
    """The best policy under a price on every branch that is left, the lowest that leaves few enough."""
    free = _without(space, "branches")
    there = [np.array(s.sizes) > 0 if s.sizes[0] == 0 else np.zeros(len(s.sizes)) for s in space.sites]
    price, low, high = 0.0, 0.0, 1.01 * max(float(table[0]) for table in errors)
    best = None
    for _ in range(_PRICES):
        choice = _exact(free, [e + price * t for e, t in zip(errors, there, strict=True)], programme)
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
    places = space.lengths - 1
    while places.any() and not bool(space.fits_at(places[None])[0]):
        _narrow(space, errors, places)
    while _widen(space, errors, places):
        pass
    return space.choice(places)


def _neighbours(space: Space, places: Ints, step: int) -> tuple[Ints, Ints]:
    """The sites ``[N]`` that can go one step, and the positions ``[N, S]`` that they lead to."""
    sites = np.flatnonzero((places + step >= 0) & (places + step < space.lengths))
    moved = np.repeat(places[None], len(sites), 0)
    moved[np.arange(len(sites)), sites] += step
    return sites, moved


def _excess(space: Space, positions: Ints) -> Floats:
    """How far each policy is over the budget: the shares by which it exceeds each limit, summed."""
    costs = space.costs_at(positions)
    over = [np.maximum(0.0, costs[name] / limit - 1) for name, limit in space.limits.items()]
    return np.asarray(np.sum(over, axis=0))


def _narrow(space: Space, errors: Sequence[Floats], places: Ints) -> None:
    sites, moved = _neighbours(space, places, -1)
    saved = _excess(space, places[None])[0] - _excess(space, moved)
    lost = np.array([errors[s][places[s] - 1] - errors[s][places[s]] for s in sites])
    price = np.where(saved > 0, lost / np.maximum(saved, 1e-300), np.inf)
    if np.isinf(price).all():  # no single step saves anything (a peak held by several sites): the cheapest goes
        price = lost
    places[sites[int(np.argmin(price))]] -= 1


def _widen(space: Space, errors: Sequence[Floats], places: Ints) -> bool:
    sites, moved = _neighbours(space, places, +1)
    if not len(sites):
        return False
    won = np.array([errors[s][places[s]] - errors[s][places[s] + 1] for s in sites])
    won[~space.fits_at(moved)] = -1
    if won.max() < 0:
        return False
    places[sites[int(np.argmax(won))]] += 1
    return True
