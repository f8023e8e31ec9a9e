"""Exact allocation: the policy within the budget with the least sum of its sites' errors.

Notation, for S sites where site s has settings k:

=========  ====================================================================================
e_s[k]     error of a setting
c_s[k]     additional cost of a setting over the site's smallest
c_st[k,l]  additional cost of the settings of two sites together, because a layer connects the sites
           and its cost is a product of both widths; c_stu[k,l,m] that of three, as of two widths and
           the bits of the weights between them
frontier   decided sites that are connected with an undecided one
label      (cost, error) of a partial policy; dominated if another label with the same settings of
           the frontier is no worse in both
=========  ====================================================================================

Costs are decomposed into these terms by `amc.search.terms`.

Under one limit, dynamic programming decides the sites in forward order, or, with terms of three sites, each as soon as
all that it is connected with are decided. For every combination of settings of the frontier it keeps all labels that
are not dominated. The final labels are the Pareto front of error and cost, for all budgets at once. For a single
budget, a Lagrangian relaxation gives a bound: labels that cannot lead to a better policy than the relaxation's are
dropped, which leaves few. Problems with several limits or too many labels become an integer program (HiGHS), with
additional variables for products of settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from amc.search.terms import Floats, Ints, Sites, TermCosts
from amc.space.budget import Space
from amc.space.sites import Choice

MOST_LABELS = 200_000
"""Dynamic programming gives up if a step has more labels. ResNet-56 needs 110,000 at most."""
_MOST_VARIABLES = 20_000
"""An integer program with more variables is not tried. VGG-16 needs 17,000 variables and two seconds."""
_NODES = 2_000
_HALVINGS, _CLOSE = 40, 1e-6  # of the bisection for a price: most steps, and relative precision


@dataclass(frozen=True, eq=False)
class _Stage:
    """One step of dynamic programming, which decides one site. A state is a combination of settings of the frontier."""

    added: Floats
    """Additional cost ``[states before, settings]``."""
    leads: Ints
    """The next state ``[states before, settings]``."""
    least_to_come: float
    """Lower bound on the cost of the sites after this one."""


@lru_cache(maxsize=16)
def _stages(costs: TermCosts) -> tuple[_Stage, ...] | None:
    """One stage per site, in the order of the costs. None if the frontier has too many states."""
    step = {site: number for number, site in enumerate(costs.order)}
    single = [costs.single[site] for site in costs.order]
    terms = {tuple(step[s] for s in sites): cost for sites, cost in costs.terms.items()}
    sizes = [len(c) for c in single]
    last = [max([t for sites in terms if s in sites for t in sites], default=s) for s in range(len(sizes))]
    least = np.array([c.min() for c in single])
    for sites, cost in terms.items():
        least[max(sites)] += cost.min()
    found: list[_Stage] = []
    before: tuple[int, ...] = ()
    for site, size in enumerate(sizes):
        after = tuple(s for s in (*before, site) if last[s] > site)
        held = [*before, site]
        if np.prod([sizes[s] for s in held], dtype=np.float64) > MOST_LABELS:
            return None
        grid = dict(zip(held, np.indices([sizes[s] for s in held]).reshape(len(held), -1), strict=True))
        added = single[site][grid[site]]
        for sites, cost in terms.items():
            if max(sites) == site:
                added = added + cost[tuple(grid[s] for s in sites)]
        leads = np.zeros(len(added), np.int64)
        for s in after:
            leads = leads * sizes[s] + grid[s]
        found.append(_Stage(added.reshape(-1, size), leads.reshape(-1, size), float(least[site + 1 :].sum())))
        before = after
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Front:
    """The Pareto front of error and cost in order of increasing cost, with its policies."""

    cost: Floats
    error: Floats
    _space: Space
    _order: Sites
    _steps: tuple[tuple[Ints, Ints], ...]
    """For every site in this order, the predecessor and the setting of each label."""

    def within(self, limit: float) -> Choice | None:
        """The policy with the least error and a cost of at most ``limit``; None if there is none."""
        label = int(np.searchsorted(self.cost, limit, side="right")) - 1
        if label < 0:
            return None
        places = [0] * len(self._order)
        for site, (parent, setting) in zip(reversed(self._order), reversed(self._steps), strict=True):
            places[site] = int(setting[label])
            label = int(parent[label])
        return self._space.choice(places)


@dataclass(frozen=True, eq=False)
class _Bound:
    """Bound for one limit: labels with ``error + price · (cost - limit) + to_come[state] > reached`` are useless."""

    price: float
    limit: float
    to_come: Sequence[Floats]
    """For every stage, the least additional error + price · cost of later sites, by state."""
    reached: float


def solve_front(
    space: Space, costs: TermCosts, errors: Sequence[Floats], limit: float, bound: _Bound | None = None
) -> Front | None:
    """The Pareto front of error and one cost up to ``limit``. None if there are too many labels."""
    stages = _stages(costs)
    if stages is None:
        return None
    state = np.zeros(1, np.int64)
    cost, error = np.array([costs.least]), np.zeros(1)
    steps = []
    for site, (stage, own) in enumerate(zip(stages, [errors[s] for s in costs.order], strict=True)):
        if len(state) * len(own) > MOST_LABELS:
            return None
        grown = (cost[:, None] + stage.added[state]).ravel()
        summed = (error[:, None] + own).ravel()
        state = stage.leads[state].ravel()
        use = grown <= limit - stage.least_to_come
        if bound is not None:
            use &= summed + bound.price * (grown - bound.limit) + bound.to_come[site][state] <= bound.reached
        kept = _undominated(state, grown, summed, np.flatnonzero(use))
        steps.append((kept // len(own), kept % len(own)))
        state, cost, error = state[kept], grown[kept], summed[kept]
    return Front(cost, error, space, costs.order, tuple(steps))


def solve(space: Space, costs: TermCosts, errors: Sequence[Floats], limit: float) -> Choice | None:
    """The policy with the least error under one limit. None if there are too many labels or no policy fits."""
    stages = _stages(costs)
    bound = _lagrange(stages, costs.least, [errors[s] for s in costs.order], limit) if stages else None
    front = solve_front(space, costs, errors, limit, bound) if bound else None
    return front.within(limit) if front else None


def _lagrange(stages: Sequence[_Stage], least: float, errors: Sequence[Floats], limit: float) -> _Bound | None:
    """The Lagrangian bound: a price on the cost, halved between policies that fit and that do not."""
    scale = max(float(np.ptp(np.concatenate(list(errors)))), 1e-300) * len(errors) / max(limit, 1e-300)
    low, high, reached = 0.0, 0.0, np.inf
    price, grow = scale, True
    for _ in range(_HALVINGS):
        cost, error, _ = _priced(stages, least, errors, price)
        if cost <= limit:
            reached, high, grow = min(reached, error), price, False
        else:
            low = price
        price = price * 8 if grow else (low + high) / 2
        if not grow and high - low <= _CLOSE * high:
            break
    if grow:
        return None
    _, _, to_come = _priced(stages, least, errors, high)
    return _Bound(high, limit, to_come, reached + 1e-9 * (abs(reached) + scale * limit))


def _priced(
    stages: Sequence[_Stage], least: float, errors: Sequence[Floats], price: float
) -> tuple[float, float, Sequence[Floats]]:
    """Minimise error + price · cost: the optimum's cost and error, and the least additional values after each site."""
    to_come, best = [np.zeros(1)], []
    for stage, own in zip(reversed(stages), reversed(errors), strict=True):
        value = own + price * stage.added + to_come[-1][stage.leads]
        best.append(value.argmin(1))
        to_come.append(value.min(1))
    state, cost, error = 0, least, 0.0
    for stage, own, chosen in zip(stages, errors, reversed(best), strict=True):
        setting = int(chosen[state])
        cost += float(stage.added[state, setting])
        error += float(own[setting])
        state = int(stage.leads[state, setting])
    return cost, error, to_come[-2::-1]


def _undominated(state: Ints, cost: Floats, error: Floats, candidates: Ints) -> Ints:
    """The candidates that are not dominated, in order of state and cost."""
    order = candidates[np.lexsort((error[candidates], cost[candidates], state[candidates]))]
    first = np.ones(len(order), bool)
    first[1:] = np.diff(state[order]) > 0
    ranked = np.unique(error[order], return_inverse=True)[1]  # integers, so that groups separate exactly
    ranked = ranked - np.cumsum(first) * (len(order) + 1)
    better = np.ones(len(order), bool)
    better[1:] = ranked[1:] < np.minimum.accumulate(ranked)[:-1]
    return order[better]


def solve_programme(
    space: Space, costs: Sequence[TermCosts], errors: Sequence[Floats], limits: Sequence[float]
) -> Choice | None:
    """The policy with the least error under several limits, by HiGHS. None if it is too large or not proven optimal."""
    starts = np.concatenate([[0], np.cumsum([len(s) for s in space.settings])])
    connected = sorted({sites for c in costs for sites in c.terms})
    numbers, total = dict[Sites, Ints](), int(starts[-1])
    for sites in connected:
        shape = [len(space.settings[s]) for s in sites]
        numbers[sites] = total + np.arange(np.prod(shape)).reshape(shape)
        total += numbers[sites].size
    if total > _MOST_VARIABLES:
        return None
    rows = [_one_each(starts, total)]
    bounds = [(1.0, 1.0)] * len(space.settings)
    for sites, own in numbers.items():
        for axis, (site, count) in enumerate(zip(sites, own.shape, strict=True)):
            block = sparse.lil_matrix((count, total))
            for k in range(count):
                block[k, own.take(k, axis).ravel()] = 1.0
                block[k, starts[site] + k] = -1.0
            rows.append(block.tocsr())
            bounds += [(0.0, 0.0)] * count
    for cost, limit in zip(costs, limits, strict=True):
        line = np.zeros(total)
        line[: starts[-1]] = np.concatenate(cost.single)
        for sites, table in cost.terms.items():
            line[numbers[sites].ravel()] = table.ravel()
        rows.append(sparse.csr_matrix(line / limit))
        bounds.append((-np.inf, (limit - cost.least) / limit))
    objective = np.concatenate([*errors, np.zeros(total - starts[-1])])
    scale = max(float(np.abs(objective).max()), 1e-300)
    whole = np.concatenate([np.ones(starts[-1]), np.zeros(total - starts[-1])])
    low, high = np.array(bounds).T
    found = milp(
        objective / scale,
        integrality=whole,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(sparse.vstack(rows), low, high),
        options={"mip_rel_gap": 1e-9, "node_limit": _NODES},
    )
    if found.status != 0:
        return None
    places = [int(np.argmax(found.x[a:b])) for a, b in pairwise(starts)]
    return space.choice(places)


def _one_each(starts: Ints, total: int) -> sparse.csr_matrix:
    """Constraints: exactly one setting per site."""
    block = sparse.lil_matrix((len(starts) - 1, total))
    for site, (a, b) in enumerate(pairwise(starts)):
        block[site, a:b] = 1.0
    return block.tocsr()
