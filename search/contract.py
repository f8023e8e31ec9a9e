"""The contract suite of searchers on small problems: `check_search`, published as `amc.testing.check_search`.

The settings in these problems are opaque: they can be compared for identity, and all other operations fail. So a
searcher that passes works with the sites of every operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from amc.envs.toy import toy_problem
from amc.evaluation.backend import Backend
from amc.evaluation.problem import Problem
from amc.evaluation.score import Score
from amc.graph.sites import SiteFeatures
from amc.operators.toy import COSTS, CoarseCosts
from amc.space.budget import Space
from amc.space.sites import Choice, Floats, Setting, SiteSettings

SITES = 4


def opaque_problem(share: float = 0.6, failing: bool = False) -> Problem:
    """A problem of the toy operator (`amc.operators.toy`), with opaque settings and non-monotone costs.

    ``share`` is the budget as a share of the original's MACs. With ``failing``, about half of the evaluations raise.
    """
    rng = np.random.default_rng(0)
    macs, gains = rng.uniform(1, 2, SITES), rng.uniform(0.2, 1, (SITES, len(COSTS)))
    gains[:, -1] = 1
    opaque = [tuple(_Opaque(f"{site}:{setting}") for setting in COSTS) for site in range(SITES)]
    sites = tuple(
        SiteSettings(f"coarse:{site}", settings, tuple(range(1, len(COSTS) + 1)), ("coarse",))
        for site, settings in enumerate(opaque)
    )
    costs = CoarseCosts(_Fixed(float(macs.sum())), range(SITES), (macs / macs.sum()).tolist())
    space = Space(sites, costs, {"macs": share * float(macs.sum())})
    features = [SiteFeatures(8, 8, 8, 8, 1, 3, float(own)) for own in macs]
    return Problem(space, features, _TableBackend(space, gains, failing))


@dataclass(frozen=True, eq=False)
class _TableBackend(Backend):
    """Scores policies by the mean of their settings' ``gains [S, K]``."""

    space: Space
    gains: Floats
    failing: bool

    def score(self, choice: Choice) -> Score:
        places = self.space.positions(choice)
        if self.failing and places.sum() % 2:
            raise RuntimeError("this policy cannot be evaluated")
        metric = float(self.gains[np.arange(SITES), places].mean())
        return Score(1 - metric, metric)

    def site_error(self, site: int, setting: Setting) -> float:
        return float(1 - self.gains[site, self.space.settings[site].index(setting)])


def check_search(search: Callable[[Problem, int, int], None], evaluations: int = 6) -> None:
    """Check the contract of `amc.search.Search`. Raises AssertionError with the reason, or what the searcher raises.

    A searcher proposes exactly as many policies as asked for, all legal and within the budget (otherwise the problem
    raises ValueError). It proposes the same ones for the same seed, does not interpret settings, and continues after a
    failed evaluation.

    >>> from amc.search.uniform import search
    >>> check_search(search)
    """
    problems: dict[str, Callable[[], Problem]] = {
        "a problem of widths": _widths_problem,
        "a problem with opaque settings": opaque_problem,
        "a problem with failing evaluations": partial(opaque_problem, failing=True),
    }
    for name, make in problems.items():
        for count in (1, evaluations):
            problem = make()
            search(problem, count, 0)
            assert problem.proposals == count, f"{name}: {problem.proposals} policies were proposed instead of {count}"
        again = make()
        search(again, evaluations, 0)
        first, second = ([p.space.positions(e.choice).tolist() for e in p.evaluations] for p in (problem, again))
        assert first == second, f"{name}: the same seed gave different proposals"


def _widths_problem() -> Problem:
    return toy_problem(sites=SITES, channels=6)[0]


class _Fixed:
    """A cost model with constant MACs."""

    def __init__(self, macs: float) -> None:
        self._macs = macs

    def costs(self, sizes: ArrayLike) -> dict[str, Floats]:
        return {"macs": np.full(len(np.atleast_2d(np.asarray(sizes))), self._macs)}


class _Opaque(str):
    """A setting that supports comparison for identity only. It is a string so that a journal can store its name."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return str.__hash__(self)

    def _refuse(self, *_: object) -> NoReturn:
        raise AssertionError("the searcher interprets a setting")

    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = _refuse
    __int__ = __float__ = __index__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __abs__ = __round__ = __array__ = __format__ = __mod__ = _refuse
