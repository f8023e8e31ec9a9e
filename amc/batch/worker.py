"""What a batch does in processes of its own: a run, and a look at whether runs are possible at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from amc.config import Config, to_dict, unless_auto
from amc.deploy.export import export_onnx, file_layout
from amc.errors import AmcError
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import EvaluationSettings
from amc.graph.build import build_graph
from amc.operators.operator import NetworkFacts
from amc.pipeline.pipeline import check, compress_task, open_task
from amc.pipeline.record import Record
from amc.pipeline.stages import Stages, branches_go, make_space
from amc.runtime.journal import Journal
from amc.runtime.locks import MeasurementLock
from amc.runtime.memory import GIB
from amc.runtime.monitor import Monitor, Silent


def work(config: Config, monitor: Monitor) -> None:
    """Begin the run in ``config.out``, or go on with it."""
    check(config)
    compress_task(open_task(config), config, Path(config.out or ""), monitor)


def keeping_to(memory: int, config: Config) -> Config:
    """The run with its own limit within ``memory`` bytes: half of them, the rest is for what is imported."""
    share = memory / 2 / GIB
    return config.replace(memory_limit=min(unless_auto(config.memory_limit) or share, share))


def evaluator_of(config: Config, folder: Path, settings: EvaluationSettings | None = None) -> Evaluator:
    """The evaluator of the run that a configuration describes, by ``settings`` where they have been decided already.

    What does not fit into memory it keeps in files of ``folder``.
    """
    task = open_task(config)
    with MeasurementLock() as lock:
        flow = Stages(Record(task, config, folder, Journal(None), Silent(), lock))
        graph = flow.inspect()
        return flow.calibrate(graph, flow.space(graph), settings)


def examine(configs: Iterable[Config]) -> Iterator[str | None]:
    """For every run what is wrong with it, as far as that can be seen without doing it."""

    def same(config: Config) -> Any:
        return [to_dict(config)[key] for key in ("model", "data", "device", "objective")]

    for _, group in groupby(configs, same):
        yield from _examine_group(list(group))


def _examine_group(group: list[Config]) -> Iterator[str | None]:
    """Runs of one network on one set of data: loaded once."""
    try:
        task = open_task(group[0])
        graph = build_graph(task.model, task.example)
    except AmcError as error:
        yield from [str(error)] * len(group)
        return
    network = NetworkFacts(task.model, graph)
    if any(config.budget.size or branches_go(config) for config in group):
        with tempfile.TemporaryDirectory() as folder:
            original = Path(folder, "original.onnx")
            export_onnx(task.model, task.example, original)
            network = NetworkFacts(task.model, graph, file_layout(original, graph, task.model))
    for config in group:
        try:
            check(config)
            make_space(config, network)
            yield None
        except AmcError as error:
            yield str(error)
