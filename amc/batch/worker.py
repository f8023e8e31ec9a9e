"""The functions that a batch runs in other processes: a run, and a check whether runs are possible."""

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
from amc.pipeline.checks import check
from amc.pipeline.opening import open_task
from amc.pipeline.pipeline import compress_task
from amc.pipeline.record import Record
from amc.pipeline.spaces import make_space, offers_branches
from amc.pipeline.stages import Stages
from amc.runtime.journal import Journal
from amc.runtime.locks import MeasurementLock
from amc.runtime.memory import GIB
from amc.runtime.monitor import Monitor, Silent


def work(config: Config, monitor: Monitor) -> None:
    """Start the run in ``config.out``, or resume it."""
    check(config)
    compress_task(open_task(config), config, Path(config.out or ""), monitor)


def keeping_to(memory: int, config: Config) -> Config:
    """The configuration with a memory limit of half of ``memory`` bytes. The rest is for imported modules."""
    share = memory / 2 / GIB
    return config.replace(memory_limit=min(unless_auto(config.memory_limit) or share, share))


def evaluator_of(config: Config, folder: Path, settings: EvaluationSettings | None = None) -> Evaluator:
    """The evaluator of the run that a configuration describes, with ``settings`` if they are already decided.

    Data that do not fit into memory are spilled to ``folder``.
    """
    task = open_task(config)
    with MeasurementLock() as lock:
        flow = Stages(Record(task, config, folder, Journal(None), Silent(), lock))
        graph = flow.inspect()
        return flow.calibrate(graph, flow.space(graph), settings)


def examine(configs: Iterable[Config]) -> Iterator[str | None]:
    """For every run, the error that can be found without executing it, or None."""
    for _, group in groupby(configs, _network_and_data):
        yield from _examine_group(list(group))


def _network_and_data(config: Config) -> list[Any]:
    """The settings that runs with the same network and data share."""
    return [to_dict(config)[key] for key in ("model", "data", "device", "objective")]


def _quantises(config: Config) -> bool:
    """Whether the bits of weights are searched, which are found in the ONNX file."""
    return "bits" in (config.search.operator_names or ())


def _examine_group(group: list[Config]) -> Iterator[str | None]:
    """`examine` for runs with the same network and data, which are loaded once."""
    try:
        task = open_task(group[0])
        graph = build_graph(task.model, task.example)
    except AmcError as error:
        yield from [str(error)] * len(group)
        return
    network = NetworkFacts(task.model, graph)
    if any(config.budget.size or offers_branches(config) or _quantises(config) for config in group):
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
