"""A backend that looks up evaluations in the cache that runs share, before it evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from amc.evaluation.backend import Backend, Forwarding
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.memo import Memo
from amc.evaluation.score import Race, Score
from amc.evaluation.settings import EvaluationSettings
from amc.space.budget import Space
from amc.space.sites import Choice, Setting


class CachedBackend(Forwarding):
    """Caches scores, races and site errors of another backend; each is computed by the first run that needs it.

    The result of a race is an estimate, so it is used only for the same race, never as a score.
    """

    def __init__(self, inner: Backend, memo: Memo, settings: EvaluationSettings) -> None:
        """``settings`` are the evaluation settings of ``inner``."""
        super().__init__(inner)
        self._scores, self._errors = memo.scores(settings), memo.site_errors(settings.objective)

    def score(self, choice: Choice) -> Score:
        return Score(*self._scores.once(list(choice), lambda: astuple(self.inner.score(choice))))

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        key = [list(choice), "against", list(incumbent), *([handicap] if handicap != 1 else [])]
        return Race(*self._scores.once(key, lambda: astuple(self.inner.race(choice, incumbent, handicap))))

    def site_error(self, site: int, setting: Setting) -> float | None:
        found: float | None = self._errors.once([site, setting], lambda: self.inner.site_error(site, setting))
        return found


class CachedSearch(CachedBackend):
    """A cached backend for searches in one space with one reward, which also caches `Backend.memo`."""

    def __init__(self, inner: Backend, memo: Memo, settings: EvaluationSettings, space: Space) -> None:
        super().__init__(inner, memo, settings)
        self._findings, self._search = memo.findings(settings), memo.search_identity(space)

    def memo(self, key: Any, find: Callable[[], Any]) -> Any:
        return self._findings.once([key, *self._search], find)


def refined_score(evaluator: Evaluator, memo: Memo, choice: Choice) -> Score:
    """See `amc.evaluation.evaluator.Evaluator.refined_score`."""
    scores = memo.scores(evaluator.settings)
    return Score(*scores.once([list(choice), "refined"], lambda: astuple(evaluator.refined_score(choice))))
