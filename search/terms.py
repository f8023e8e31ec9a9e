"""The costs of a space as sums of terms of one, two and three sites, found by queries to its cost model.

The notation is that of `amc.search.exact`: c_s, c_st and c_stu are the additional costs of settings over the smallest.
The decomposition is exact for MACs and parameters, since a tensor lies between two sites, and exact to a few bytes for
the size of the file. Terms of three sites are looked for where terms of two do not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from amc.space.budget import Space

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PROBES, _TOLERANCE = 64, 1e-4
_NEGLIGIBLE = 2e-5
"""Terms of three sites are sought, and pairs kept beside them, if they are above this share of the original's cost."""
_MOST_TRIPLES = 20_000

Sites = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TermCosts:
    """Cost of a resource as ``least + Σ single[s][k] + Σ terms[s, t][k, l] + Σ terms[s, t, u][k, l, m]``, s < t < u.

    >>> TermCosts(1.0, (np.array([0.0, 2.0]), np.array([0.0, 3.0])), {(0, 1): np.array([[0, 0], [0, 5.0]])})([1, 1])
    11.0
    """

    least: float
    single: tuple[Floats, ...]
    terms: dict[Sites, Floats]

    def __call__(self, places: Sequence[int]) -> float:
        """Cost of the policy with setting number ``places[s]`` at every site s."""
        total = self.least + sum(c[k] for c, k in zip(self.single, places, strict=True))
        return float(total + sum(c[tuple(places[s] for s in sites)] for sites, c in self.terms.items()))

    @cached_property
    def order(self) -> Sites:
        """The order in which dynamic programming decides the sites."""
        count = len(self.single)
        if all(len(sites) == 2 for sites in self.terms):
            return tuple(range(count))
        met: dict[int, set[int]] = {s: set() for s in range(count)}
        for sites in self.terms:
            for s in sites:
                met[s].update(sites)
        found: list[int] = []
        for site in range(count):
            if site not in found:
                found.append(site)
                found += [s for s in sorted(met[site]) if s not in found and met[s] - {s} <= {*found}]
        return tuple(found)


def term_costs(space: Space, resource: str) -> TermCosts | None:
    """Decompose the cost of a resource. None if it is not a sum over pairs and triples, as for peak memory."""
    found = _pair_costs(space, resource)
    if _is_right(space, resource, found):
        return found
    more = _with_triples(space, resource, found)
    return more if more and _is_right(space, resource, more) else None


def _pair_costs(space: Space, resource: str) -> TermCosts:
    """The cost as if it were a sum over pairs of sites."""
    lengths = space.lengths.tolist()
    sites = range(len(lengths))
    query = partial(_costs_of_moves, space, resource)
    least = float(query([()])[0])
    single = tuple(query([[(s, k)] for k in range(lengths[s])]) - least for s in sites)
    both = [(s, t) for s in sites for t in sites if s < t]
    wide = query([[(s, lengths[s] - 1), (t, lengths[t] - 1)] for s, t in both]) - least if both else np.zeros(0)
    connected = [
        (s, t) for (s, t), cost in zip(both, wide, strict=True) if abs(cost - single[s][-1] - single[t][-1]) > 1e-9
    ]
    pairs: dict[Sites, Floats] = {}
    for s, t in connected:
        cost = query([[(s, k), (t, m)] for k in range(lengths[s]) for m in range(lengths[t])]) - least
        pairs[s, t] = cost.reshape(len(single[s]), -1) - single[s][:, None] - single[t][None, :]
    return TermCosts(least, single, pairs)


def _is_right(space: Space, resource: str, found: TermCosts) -> bool:
    """Whether random policies have the costs that the terms add up to."""
    rng = np.random.default_rng(0)
    probes = np.stack([rng.integers(0, length, _PROBES) for length in space.lengths.tolist()], 1)
    true = _costs_of_moves(space, resource, [list(enumerate(row)) for row in probes])
    wrong = max(abs(found(row) - cost) for row, cost in zip(probes.tolist(), true, strict=True))
    return bool(wrong <= _TOLERANCE * max(1.0, abs(float(true.max()))))


def _with_triples(space: Space, resource: str, known: TermCosts) -> TermCosts | None:
    """The costs with terms of three sites, of which two pairs are connected. None if there are too many."""
    last = [length - 1 for length in space.lengths.tolist()]
    query = partial(_costs_of_moves, space, resource)
    whole = float(query([list(enumerate(last))])[0])
    least = _NEGLIGIBLE * whole
    pairs = {sites: cost for sites, cost in known.terms.items() if float(np.abs(cost).max()) > least}
    kept = TermCosts(known.least, known.single, pairs)
    met: dict[int, set[int]] = {}
    for s, t in pairs:
        met.setdefault(s, set()).add(t)
        met.setdefault(t, set()).add(s)
    triples = sorted({tuple(sorted((s, a, b))) for s, others in met.items() for a in others for b in others if a != b})
    if not triples or len(triples) > _MOST_TRIPLES:
        return None
    true = query([[(s, last[s]) for s in sites] for sites in triples])
    terms = dict(pairs)
    for sites, cost in zip(triples, true, strict=True):
        corner = [last[s] if s in sites else 0 for s in range(len(last))]
        if abs(cost - kept(corner)) > least:
            shape = [last[s] + 1 for s in sites]
            grid = np.indices(shape).reshape(len(sites), -1).T.tolist()
            costs = query([list(zip(sites, places, strict=True)) for places in grid])
            rows = np.zeros((len(grid), len(last)), np.int64)
            rows[:, sites] = grid
            terms[sites] = (costs - [kept(row) for row in rows.tolist()]).reshape(shape)
    return TermCosts(known.least, known.single, terms)


def _costs_of_moves(space: Space, resource: str, moves: Sequence[Sequence[tuple[int, int]]]) -> Floats:
    """Costs ``[N]`` of the smallest policy after each of N moves, which are lists of (site, position)."""
    places = np.zeros((len(moves), len(space.lengths)), np.int64)
    for row, changes in enumerate(moves):
        for site, place in changes:
            places[row, site] = place
    return np.asarray(space.costs_at(places)[resource], np.float64)
