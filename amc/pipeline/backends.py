"""What a search evaluates by: the evaluator here or workers elsewhere, a cache before it, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from amc.config import Config
from amc.evaluation.backend import Backend, Forwarding
from amc.evaluation.cached import CachedBackend, CachedSearch
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.latency.constraint import LatencyConstraint
from amc.latency.profiling import Bench
from amc.operators.channels import widths_of
from amc.pipeline.record import Record
from amc.space.budget import Space
from amc.space.sites import Choice, Setting

Step = Callable[[float, str], None]
"""Told of every step of a search: the share that is done, and a note."""

RemoteBackend = Callable[[Config, Evaluator], Backend]
"""Makes a backend that scores on other machines as the evaluator does on this one."""


class MeasuredLatency(Forwarding):
    """Adds the latency of every policy, measured on this machine, to its costs."""

    def __init__(self, inner: Backend, bench: Bench) -> None:
        super().__init__(inner)
        self._bench = bench

    def measure(self, choice: Choice) -> Mapping[str, float]:
        return {"latency": self._bench.timing(widths_of(choice)).ratio * self._bench.original_ms}


class SearchProgress(Forwarding):
    """Shows how far a search is: the site errors that are estimated before its first proposal, then its best policy."""

    def __init__(self, inner: Backend, step: Step, metric: str, sites: int, evaluations: int) -> None:
        super().__init__(inner)
        self._step, self._metric, self._sites, self._evaluations = step, metric, sites, evaluations
        self._proposals, self._best = 0, float("-inf")

    def site_error(self, site: int, setting: Setting) -> float | None:
        if not self._proposals:
            self._step(0.0, f"errors of sites: {site + 1} of {self._sites}")
        return self.inner.site_error(site, setting)

    def observe(self, evaluation: Evaluation, proposals: int) -> None:
        """Take note of an evaluation, after so many ``proposals``."""
        self._proposals = proposals
        if evaluation.error is None:
            self._best = max(self._best, evaluation.metric)
        shown = f"best {self._metric} {100 * self._best:.2f} %" if self._best > float("-inf") else "no policy works yet"
        self._step(min(1.0, proposals / self._evaluations), f"{shown} before fine-tuning")


class RoundObserver:
    """Shows how far a round's search is, and lets the limit on latency be checked in it."""

    def __init__(self, progress: SearchProgress, latency: LatencyConstraint | None, space: Space) -> None:
        self._progress, self._latency, self._space = progress, latency, space

    def __call__(self, problem: Problem, evaluation: Evaluation) -> None:
        """See `amc.evaluation.problem.Observer`. Raises RoundOver where latency is predicted wrongly."""
        self._progress.observe(evaluation, problem.proposals)
        if self._latency:
            self._latency.check(self._space, problem.proposals, lambda: [e.choice for e in problem.best()])


def search_backend(
    record: Record,
    evaluator: Evaluator,
    space: Space,
    bench: Bench | None,
    remote: RemoteBackend | None,
    kept: bool = True,
) -> SearchProgress:
    """The backend of a run's search. With a ``bench`` latency is measured.

    ``kept``: what the search finds on its way is of use to other runs; what depends on measured latency is not.
    """
    own = remote(record.config, evaluator) if remote else evaluator
    backend: Backend
    if bench is not None:
        backend = MeasuredLatency(CachedBackend(own, record.memo, evaluator.settings), bench)
    elif kept:
        backend = CachedSearch(own, record.memo, evaluator.settings, space)
    else:
        backend = CachedBackend(own, record.memo, evaluator.settings)
    metric, evaluations = record.task.objective.name, record.config.search.evaluations
    return SearchProgress(backend, record.step, metric, len(space.names), evaluations)
