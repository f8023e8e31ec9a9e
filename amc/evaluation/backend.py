"""Backends evaluate policies for a problem. This module has their protocol and its small implementations.

=================================  =====================================================================
`amc.evaluation.evaluator`         forward passes of pruned networks in this process (`Evaluator`)
`amc.evaluation.cached`            results of any run that shares the cache (`CachedBackend`)
`amc.batch.cluster`                evaluation on the nodes of a Ray cluster (`RayBackend`)
`FunctionBackend`                  Python functions, for toy problems and tests
=================================  =====================================================================
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from amc.evaluation.score import Race, Score
from amc.space.sites import Choice, Setting


class Backend(Protocol):
    """Evaluates policies. Only `score` is required; the other methods have defaults that do nothing."""

    @property
    def races(self) -> bool:
        """Whether `race` is possible."""
        return False

    @abstractmethod
    def score(self, choice: Choice) -> Score:
        """The policy's score on the whole search split."""

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        """Compare a policy with the ``incumbent`` on as few samples as are needed to see which is better.

        The policy's loss is multiplied by ``handicap``, which is below 1 if latency matters and the policy is faster.
        """
        message = f"{type(self).__name__} does not support races"  # a mere raise would make mypy call this abstract
        raise NotImplementedError(message)

    def site_error(self, site: int, setting: Setting) -> float | None:
        """Estimated increase of the objective of the search by one site's setting; None if there is no estimate."""
        return None

    def measure(self, choice: Choice) -> Mapping[str, float]:
        """Measured costs of a policy, such as ``latency`` in milliseconds."""
        return {}

    def announce(self, choices: Sequence[Choice]) -> None:
        """Called with the policies that `score` will get next, so that workers can start on them."""
        return

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        """Memoise: return the stored value for ``key``, or call ``find`` and store its result. Both are JSON values."""
        return find()


class FunctionBackend(Backend):
    """Evaluates with the given functions; where one is None, the default of `Backend` applies.

    >>> backend = FunctionBackend(lambda choice: Score(loss=1 / sum(choice), metric=0.5))
    >>> backend.score((1, 3)), backend.races
    (Score(loss=0.25, metric=0.5, share=1.0, rejected=False), False)
    """

    def __init__(
        self,
        score: Callable[[Choice], Score],
        site_error: Callable[[int, Setting], float] | None = None,
        race: Callable[[Choice, Choice, float], Race] | None = None,
        memo: Callable[[Any, Callable[[], Any]], Any] | None = None,
    ) -> None:
        self._score, self._site_error, self._race, self._memo = score, site_error, race, memo

    @property
    def races(self) -> bool:
        return self._race is not None

    def score(self, choice: Choice) -> Score:
        return self._score(choice)

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        if self._race is None:
            raise NotImplementedError("this backend was given no function for races")
        return self._race(choice, incumbent, handicap)

    def site_error(self, site: int, setting: Setting) -> float | None:
        return None if self._site_error is None else self._site_error(site, setting)

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        return find() if self._memo is None else self._memo(key, find)


class Forwarding(Backend):
    """Forwards every call to another backend; a base class for wrappers that override some methods."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def races(self) -> bool:
        return self.inner.races

    def score(self, choice: Choice) -> Score:
        return self.inner.score(choice)

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        return self.inner.race(choice, incumbent, handicap)

    def site_error(self, site: int, setting: Setting) -> float | None:
        return self.inner.site_error(site, setting)

    def measure(self, choice: Choice) -> Mapping[str, float]:
        return self.inner.measure(choice)

    def announce(self, choices: Sequence[Choice]) -> None:
        self.inner.announce(choices)

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        return self.inner.memo(key, find)
