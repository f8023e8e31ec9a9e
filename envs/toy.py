"""A toy problem with a known optimum, for tests of environments and searchers.

Site s of width w gains ``importance[s] · log2(1 + w)`` and costs ``price[s] · w`` MACs. The metric is the gain as a
share of the original's. There are few sites and settings, so the optimum is found by exhaustive search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amc.envs.pruning import PruningEnv
from amc.evaluation.backend import Backend
from amc.evaluation.problem import Problem
from amc.evaluation.score import Score
from amc.graph.sites import SiteFeatures
from amc.space.budget import Space
from amc.space.sites import Choice, Floats, Setting, numeric_sites


class ToyCosts:
    """``macs = price · w``, ``params = Σ w``, and ``latency = Σ ⌈w / 2⌉`` ms, with steps of two channels.

    >>> ToyCosts([1.0, 2.0]).costs([[3, 4]])["latency"].tolist()
    [4.0]
    """

    def __init__(self, price: ArrayLike) -> None:
        self._price = np.asarray(price, np.float64)

    def costs(self, choices: ArrayLike) -> dict[str, Floats]:
        w = np.atleast_2d(np.asarray(choices, np.float64))
        return {"macs": w @ self._price, "params": w.sum(1), "latency": np.ceil(w / 2).sum(1)}


@dataclass(frozen=True, eq=False)
class ToyBackend(Backend):
    """Scores the policies of a toy problem."""

    space: Space
    importance: Floats
    """``[S]``"""
    whole: float
    """The gain of the original."""

    def score(self, choice: Choice) -> Score:
        metric = float(self.importance @ np.log2(1 + self.space.sizes_of(choice))) / self.whole
        return Score(1 - metric, metric)

    def site_error(self, site: int, setting: Setting) -> float:
        own = self.space.sites[site]
        width = own.sizes[own.settings.index(setting)]
        return float(self.importance[site] * (np.log2(1 + own.sizes[-1]) - np.log2(1 + width))) / self.whole


def toy_problem(
    share: float = 0.5, sites: int = 5, channels: int = 8, seed: int = 0, resources: Sequence[str] = ("macs",)
) -> tuple[Problem, float]:
    """A problem with a budget of ``share`` of the MACs, or of other resources, and the metric of its best policy.

    >>> problem, best = toy_problem(sites=2)
    >>> problem.evaluate(problem.space.fit([1.0, 1.0])).metric <= best < 1
    True
    """
    rng = np.random.default_rng(seed)
    price, importance = rng.uniform(0.5, 2.0, sites), rng.uniform(0.1, 1.0, sites) ** 2
    settings = tuple(range(1, channels + 1))
    full = np.full(sites, channels)
    whole = float(importance @ np.log2(1 + full))
    costs = ToyCosts(price)
    limits = {name: share * float(costs.costs([full])[name][0]) for name in resources}
    space = Space(numeric_sites([f"site{s}" for s in range(sites)], (settings,) * sites), costs, limits)
    everything = np.array(list(product(range(channels), repeat=sites)))
    best = float((np.log2(1 + space.sizes_at(everything[space.fits_at(everything)])) @ importance).max()) / whole
    features = [SiteFeatures(channels, channels, 8, 8, 1, 3, float(p * channels)) for p in price]
    return Problem(space, features, ToyBackend(space, importance, whole)), best


def toy_environment(render_mode: str | None = None, **of: Any) -> PruningEnv:
    """Create ``amc/Toy-v0``; the other arguments are those of `toy_problem`."""
    return PruningEnv(toy_problem(**of)[0], render_mode)
