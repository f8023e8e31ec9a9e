"""The backend of a search: the evaluator here or remote workers, behind a cache, with a progress display."""

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
"""Called at every step of a search, with the share that is done and a note."""

RemoteBackend = Callable[[Config, Evaluator], Backend]
"""Makes a backend that gives the evaluator's scores, computed on other machines."""


class MeasuredLatency(Forwarding):
    """Adds the latency of every policy, measured on this machine, to its costs."""

    def __init__(self, inner: Backend, bench: Bench) -> None:
        super().__init__(inner)
        self._bench = bench

    def measure(self, choice: Choice) -> Mapping[str, float]:
        return {"latency": self._bench.timing(widths_of(choice)).ratio * self._bench.original_ms}


class SearchProgress(Forwarding):
    """Shows the progress of a search: first the estimation of site errors, then the best policy so far."""

    def __init__(self, inner: Backend, step: Step, metric: str, sites: int, evaluations: int) -> None:
        super().__init__(inner)
        self._step, self._metric, self._sites, self._evaluations = step, metric, sites, evaluations
        self._proposals, self._best = 0, float("-inf")
        self.site_errors: dict[tuple[int, Setting], float] = {}
        """The estimates that the searcher has asked for."""

    def site_error(self, site: int, setting: Setting) -> float | None:
        if not self._proposals:
            self._step(0.0, f"errors of sites: {site + 1} of {self._sites}")
        error = self.inner.site_error(site, setting)
        if error is not None:
            self.site_errors[site, setting] = error
        return error

    def observe(self, evaluation: Evaluation, proposals: int) -> None:
        """Called with an evaluation and the number of ``proposals`` so far."""
        self._proposals = proposals
        if evaluation.error is None:
            self._best = max(self._best, evaluation.metric)
        shown = f"best {self._metric} {100 * self._best:.2f} %" if self._best > float("-inf") else "no policy works yet"
        self._step(min(1.0, proposals / self._evaluations), f"{shown} before fine-tuning")


class RoundObserver:
    """Shows the progress of a round's search, and checks the limit on latency during it."""

    def __init__(self, progress: SearchProgress, latency: LatencyConstraint | None, space: Space) -> None:
        self._progress, self._latency, self._space = progress, latency, space

    def __call__(self, problem: Problem, evaluation: Evaluation) -> None:
        """See `amc.evaluation.problem.Observer`. Raises RoundOver if latency predictions turn out to be wrong."""
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
    """The backend of a run's search. With a ``bench``, the latency of every policy is measured.

    ``kept``: whether the searcher's intermediate results are cached for other runs. Those that depend on latency must
    not be.
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
