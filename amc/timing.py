"""`amc profile`: learn what a network's policies take on this machine, for searches to come."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from amc.config import Config
from amc.export import export_onnx
from amc.graph import build_graph
from amc.latency.profile import LearnedModel
from amc.pace import Bench, learn_latency, profile_key
from amc.task import Task


def profile_network(task: Task, config: Config, path: Path, progress: Callable[[float, str], None]) -> LearnedModel:
    """Measure policies of the task's network into ``path``, going on with what it holds already."""
    graph = build_graph(task.model, task.example)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, "original.onnx")
        export_onnx(task.model, task.example, original)
        bench = Bench(task, graph, original, config.latency_threads)
        key = profile_key(bench, config.latency_threads, task)
        return learn_latency(bench, graph, key, path, config.profile_seconds, progress)
