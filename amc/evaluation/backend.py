"""Who evaluates policies for a problem: the protocol, and its small implementations.

=================================  =====================================================================
`amc.evaluation.evaluator`         here, by forward passes of pruned networks (`Evaluator`)
`amc.evaluation.cached`            what any run that shares a cache has found (`CachedBackend`)
`amc.batch.cluster`                on the nodes of a Ray cluster (`RayBackend`)
`FunctionBackend`                  by Python functions: toy problems and tests
=================================  =====================================================================
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from amc.evaluation.score import Race, Score
from amc.space.sites import Choice, Setting


class Backend(Protocol):
    """Evaluates policies. Only `score` must be given; the defaults know and do nothing else."""

    @property
    def races(self) -> bool:
        """Whether `race` is possible."""
        return False

    @abstractmethod
    def score(self, choice: Choice) -> Score:
        """The policy's score on the whole search split."""

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        """Compare a policy with the ``incumbent`` on as few samples as it takes to see which is better.

        The policy's loss counts ``handicap`` times: below 1 where the policy is faster and time is worth something.
        """
        raise NotImplementedError(f"{type(self).__name__} runs no races")

    def site_error(self, site: int, setting: Setting) -> float | None:
        """What one site's setting costs in the objective of the search, estimated; None: there is no estimate."""
        return None

    def measure(self, choice: Choice) -> Mapping[str, float]:
        """Costs of a policy that are measured, such as ``latency`` in milliseconds."""
        return {}

    def announce(self, choices: Sequence[Choice]) -> None:
        """Told which policies `score` will be asked for next: where there are many workers, they begin with them."""
        return

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        """What is known by a ``key``, else what ``find`` gives, kept for later. Both are plain values."""
        return find()


class FunctionBackend(Backend):
    """Evaluates by functions; those that are None do what `Backend` does.

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
            raise NotImplementedError("no function for races was given")
        return self._race(choice, incumbent, handicap)

    def site_error(self, site: int, setting: Setting) -> float | None:
        return None if self._site_error is None else self._site_error(site, setting)

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        return find() if self._memo is None else self._memo(key, find)


class Forwarding(Backend):
    """Passes everything on to another backend; what is built on it changes some of that."""

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
