"""The contract of searchers, tried on small problems: `check_search`, published as `amc.testing.check_search`.

The settings of these problems are sealed: they can be told apart, and whatever else is done with them fails. So a
searcher that passes works with the sites of every operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from amc.envs.toy import toy_problem
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem
from amc.evaluation.score import Score
from amc.graph.sites import SiteFeatures
from amc.operators.toy import COSTS, CoarseCosts
from amc.space.budget import Space
from amc.space.sites import Choice, Floats, Setting, SiteSettings

SITES = 4


def sealed_problem(share: float = 0.6, failing: bool = False) -> Problem:
    """Sites of the toy operator (`amc.operators.toy`), whose settings are sealed and whose costs go up and down.

    ``share``: of the original's MACs. ``failing``: the evaluation of about every other policy raises.
    """
    rng = np.random.default_rng(0)
    macs, gains = rng.uniform(1, 2, SITES), rng.uniform(0.2, 1, (SITES, len(COSTS)))
    gains[:, -1] = 1
    sealed = [tuple(_Sealed(f"{site}:{setting}") for setting in COSTS) for site in range(SITES)]
    sites = tuple(
        SiteSettings(f"coarse:{site}", settings, tuple(range(1, len(COSTS) + 1)), ("coarse",))
        for site, settings in enumerate(sealed)
    )
    costs = CoarseCosts(_Fixed(float(macs.sum())), range(SITES), (macs / macs.sum()).tolist())
    space = Space(sites, costs, {"macs": share * float(macs.sum())})

    def score(choice: Choice) -> Score:
        places = space.positions(choice)
        if failing and places.sum() % 2:
            raise RuntimeError("this policy cannot be evaluated")
        metric = float(gains[np.arange(SITES), places].mean())
        return Score(1 - metric, metric)

    def error(site: int, setting: Setting) -> float:
        return float(1 - gains[site, sites[site].settings.index(setting)])

    features = [SiteFeatures(8, 8, 8, 8, 1, 3, float(own)) for own in macs]
    return Problem(space, features, FunctionBackend(score, error))


def check_search(search: Callable[[Problem, int, int], None], evaluations: int = 6) -> None:
    """Raise AssertionError, saying why, or what the searcher raises, unless it keeps to `amc.search.Search`.

    It proposes as often as it is asked to, policies that are legal and within the budget (else the problem raises
    ValueError), the same with the same seed, looks into no setting, and goes on where an evaluation fails.
    """
    problems: dict[str, Callable[[], Problem]] = {
        "a problem of widths": lambda: toy_problem(sites=SITES, channels=6)[0],
        "a problem whose settings are sealed": sealed_problem,
        "a problem whose evaluations fail": lambda: sealed_problem(failing=True),
    }
    for name, make in problems.items():
        for count in (1, evaluations):
            problem = make()
            search(problem, count, 0)
            assert problem.proposals == count, f"{name}: {problem.proposals} policies are proposed instead of {count}"
        again = make()
        search(again, evaluations, 0)
        first, second = ([p.space.positions(e.choice).tolist() for e in p.evaluations] for p in (problem, again))
        assert first == second, f"{name}: the same seed gives another search"


class _Fixed:
    """The same MACs whatever is asked."""

    def __init__(self, macs: float) -> None:
        self._macs = macs

    def costs(self, sizes: ArrayLike) -> dict[str, Floats]:
        return {"macs": np.full(len(np.atleast_2d(np.asarray(sizes))), self._macs)}


class _Sealed(str):
    """A setting of which nothing can be learned but whether it is another one. (Journals write it as its name.)"""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return str.__hash__(self)

    def _refuse(self, *_: object) -> NoReturn:
        raise AssertionError("the searcher looks into a setting")

    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = _refuse
    __int__ = __float__ = __index__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __abs__ = __round__ = __array__ = __format__ = __mod__ = _refuse
