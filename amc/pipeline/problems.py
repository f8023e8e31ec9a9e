"""A problem without a run, for environments and searchers that are used on their own."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from amc.config import Config
from amc.errors import ConfigError
from amc.evaluation.cached import CachedSearch
from amc.evaluation.problem import Problem
from amc.evaluation.reward import load_reward
from amc.pipeline.checks import check_gradients
from amc.pipeline.record import Record
from amc.pipeline.stages import Stages, site_features
from amc.runtime.journal import Journal
from amc.runtime.locks import MeasurementLock
from amc.runtime.monitor import Logged
from amc.task import Task


def problem_of(task: Task, config: Config) -> Problem:
    """The problem of a run's search. Policies are scored on the whole search split; the test split is not read.

    Raises ConfigError if latency is limited or measured: only a run verifies and corrects predictions.
    """
    if config.budget.latency is not None or config.search.latency_aware or config.search.reward == "error-latency":
        raise ConfigError("a problem without a run has no latency: limit MACs, parameters, size or memory.")
    check_gradients(task, config)
    folder = Path(tempfile.mkdtemp(prefix="amc-"))
    try:
        record = Record(task, config, folder, Journal(None), Logged(), MeasurementLock())
        stages = Stages(record)
        graph = stages.inspect()
        space = stages.space(graph)
        evaluator = stages.calibrate(graph, space)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    backend = CachedSearch(evaluator, record.memo, evaluator.settings, space)
    problem = Problem(space, site_features(graph, space.names), backend, load_reward(config.search.reward), races=False)
    weakref.finalize(problem, shutil.rmtree, folder, True)
    return problem
