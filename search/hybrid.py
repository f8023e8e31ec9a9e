"""The default searcher: allocated policies, hill climbing over coefficients, then a surrogate model.

1. The first proposals are the uniform policy and the allocator's policies, from the sites' errors and from flattened
   errors, because single errors overstate the differences between sites.
2. Half of the search is hill climbing: the allocator's coefficients of sites are perturbed, as in SPDY. The resulting
   policies are diverse, and all of them are plausible.
3. Then proposals also include neighbours and crossings of the best policies, and random ones.
4. The last part refines: it changes one or two sites of the best policy at a time.

Every proposal after the first ones is the best of a pool under a `Surrogate`: by expected improvement, and in the last
part by the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.runtime.registry import about
from amc.search.allocate import decode, error_tables, fast_decoder
from amc.search.neighbours import crossed, neighbour
from amc.search.spdy import TRIES, perturbation
from amc.search.surrogate import Surrogate, improvement
from amc.space.budget import Space
from amc.space.sites import Choice

Floats = NDArray[np.float64]

_FLATTENED = (1.0, 0.5, 0.25)  # exponents of the allocator's tables
_LEAST = 3  # evaluations that a surrogate needs


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    pool: Annotated[int, about("candidates per proposal", ge=1)] = 32,
    climb_pool: Annotated[int, about("candidates per proposal during hill climbing", ge=1)] = 8,
    climb: Annotated[float, about("share of the search for hill climbing over coefficients", ge=0, le=1)] = 0.5,
    last: Annotated[float, about("share of the search at its end that only refines", ge=0, le=1)] = 0.25,
) -> None:
    """Propose allocated policies, then climb the allocator's coefficients, then the best candidates of a surrogate."""
    state = _Hybrid(problem, seed, pool, climb_pool)
    first = state.beginnings()[:evaluations]
    for number, choice in enumerate(first):
        problem.evaluate(choice, "allocation" if number else "uniform")
    for number in range(len(first), evaluations):
        done = number / evaluations
        if done < climb:
            problem.evaluate(state.climb(done), "hill climbing")
        else:
            choice = state.propose(refine=done >= 1 - last)
            problem.evaluate(choice, state.parts.get(choice, "random"))


class _Hybrid:
    def __init__(self, problem: Problem, seed: int, pool: int, climb_pool: int) -> None:
        self._sizes = pool, climb_pool
        self._problem, self._space = problem, problem.space
        self._rng = np.random.default_rng(seed)
        self._tables = error_tables(problem)
        self._decode = fast_decoder(self._space, self._tables)
        self._sites = len(self._space.names)
        self._coefficients: dict[Choice, Floats] = {}
        """Logarithms of the coefficients ``[S]``, by the policy that they led to."""
        self.parts: dict[Choice, str] = {}
        """The part that drew a candidate near the best policies."""

    def beginnings(self) -> list[Choice]:
        """Distinct first policies: the uniform one, and allocated ones."""
        ones = np.ones(self._sites)
        allocated = [decode(self._space, [t**power for t in self._tables], ones) for power in _FLATTENED]
        self._coefficients[allocated[0]] = 0 * ones
        return list(dict.fromkeys([self._space.fit(ones), *allocated]))

    def climb(self, done: float) -> Choice:
        """The best candidate from perturbed coefficients; fewer sites are perturbed as the search proceeds."""
        return self._promising(self._pool(lambda: self._perturbed(0.5 * (1 - done)), self._sizes[1]), refine=False)

    def propose(self, refine: bool) -> Choice:
        """The best candidate near the best policies."""
        best = [e.choice for e in self._problem.best(8)]
        if not best:
            return self._random()
        pool = self._pool(lambda: self._near(best[0]) if refine else self._candidate(best), self._sizes[0])
        return self._promising(pool, refine)

    def _pool(self, draw: Callable[[], Choice], size: int) -> list[Choice]:
        """Up to ``size`` distinct policies that were not evaluated yet; an evaluated one if no others are found."""
        seen = {e.choice for e in self._problem.evaluations}
        pool: dict[Choice, None] = {}
        for _ in range(max(TRIES, 2 * size)):
            choice = self._space.canonical(draw())
            if choice not in seen:
                pool[choice] = None
            if len(pool) == size:
                break
        return list(pool) or [choice]

    def _promising(self, choices: list[Choice], refine: bool) -> Choice:
        """The best policy by the surrogate's expected improvement, or by its mean if ``refine``."""
        good = [e for e in self._problem.evaluations if e.error is None]
        if len(good) < _LEAST:
            return choices[0]
        mean, deviation = (surrogate := self._surrogate(good)).predict(self._features(choices), self._trends(choices))
        value = mean if refine else improvement(mean, deviation, surrogate.best)
        return choices[int(np.argmax(value))]

    def _candidate(self, best: list[Choice]) -> Choice:
        kind = self._rng.random()
        if kind < 0.45:
            parent = best[min(int(self._rng.exponential(2)), len(best) - 1)]
            return self._by("neighbour", neighbour(self._space, parent, self._rng, int(self._rng.integers(1, 4))))
        if kind < 0.7 and len(best) > 1:
            first, second = self._rng.choice(len(best), 2, replace=False)
            return self._by("crossing", crossed(self._space, best[first], best[second], self._rng))
        if kind < 0.9:
            return self._by("hill climbing", self._perturbed(self._rng.uniform(0, 0.5)))
        return self._by("random", self._random())

    def _near(self, best: Choice) -> Choice:
        return self._by("refinement", neighbour(self._space, best, self._rng, int(self._rng.integers(1, 3))))

    def _by(self, part: str, choice: Choice) -> Choice:
        """The policy, after noting which part drew it last."""
        self.parts[choice] = part
        return choice

    def _perturbed(self, share: float) -> Choice:
        """The allocator's policy for the best coefficients so far, perturbed at about this share of the sites."""
        rewards = {e.choice: e.reward for e in self._problem.evaluations if e.error is None}
        known = [c for c in self._coefficients if c in rewards]
        start = self._coefficients[max(known, key=lambda c: rewards[c])] if known else np.zeros(self._sites)
        coefficients = start + perturbation(self._rng, self._sites, share)
        choice = self._decode(np.exp(coefficients))
        self._coefficients.setdefault(choice, coefficients)
        return choice

    def _random(self) -> Choice:
        return self._space.fit(self._rng.uniform(self._rng.uniform(0.2, 0.8), 1, self._sites))

    def _surrogate(self, good: list[Evaluation]) -> Surrogate:
        choices = [e.choice for e in good]
        doubt = np.array([3.0 if e.rejected else 1.0 for e in good])
        return Surrogate(self._features(choices), self._trends(choices), [e.reward for e in good], doubt)

    def _features(self, choices: list[Choice]) -> Floats:
        sizes = np.array([self._space.sizes_of(choice) for choice in choices], np.float64)
        return np.log(np.maximum(sizes, 0.5) / self._space.full_sizes)  # size 0 counts as half a channel

    def _trends(self, choices: list[Choice]) -> Floats:
        """Logarithms of the allocator's errors ``[n]``."""
        return np.log([1e-6 + _error(self._space, self._tables, choice) for choice in choices])


def _error(space: Space, tables: list[Floats], choice: Choice) -> float:
    return float(sum(table[place] for table, place in zip(tables, space.positions(choice), strict=True)))
