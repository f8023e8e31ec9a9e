"""Peak memory of inspecting and calibrating a large network: python -m benchmarks.memory torchvision:resnet50

Weights and images are random, because memory depends on neither. Prints the peak resident memory after every step.
Sites are ranked one at a time, so the widest ones determine the peak. The rest is ranked by L2 if time is short.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.build import build_graph
from amc.graph.sites import Graph
from amc.importance import load_criterion, view
from amc.reconstruction.moments import Moments, collect, moment_store, readers
from amc.reconstruction.sequential import FULL
from amc.runtime.memory import Memory
from amc.task import Splits, make_task
from amc.task.models import build_model
from amc.task.splits import InMemorySplit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--memory-limit", type=float, default=6.0, help="GiB [6]")
    parser.add_argument("--images", type=int, default=32, help="calibration images [32]")
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds of ranking by obs [120]")
    parser.add_argument("--size", type=int, default=224, help="side of the images [224]")
    asked = parser.parse_args()
    start = time.perf_counter()

    def told(step: str) -> None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        print(f"{step:<12} peak {peak:5.2f} GiB, {time.perf_counter() - start:6.1f} s", flush=True)

    torch.manual_seed(0)
    model = build_model(asked.model, False, 3, 1000)
    split = InMemorySplit(torch.randn(asked.images, 3, asked.size, asked.size), torch.randint(0, 1000, (asked.images,)))
    task = make_task(asked.model, model, Splits(split, split, split, split, None, "noise"), torch.device("cpu"))
    told("loaded")
    graph = build_graph(task.model, task.example)
    told("inspected")
    memory = Memory.of(asked.memory_limit)
    with tempfile.TemporaryDirectory() as folder:
        store = moment_store(memory, Path(folder))
        moments = collect(task, readers(graph, task.model), 0, memory.batch(graph.trace.peak, 64), store, memory.share)
        told("collected")
        orders, slow = ranked(graph, task.model, moments, asked.seconds)
        told("ranked")
        settings = EvaluationSettings("loss", reconstruction=Reconstruction(final=FULL))
        evaluator = Evaluator(task, graph, orders, moments, settings, memory)
        half = tuple(max(1, site.channels // 2) for site in graph.sites)
        evaluator.network(half)
        told("re-solved")
        evaluator.refined(half)
        told("refined")
        print(
            f"moments of {len(moments)} layers, {store.filed} in files; {len(graph.sites)} sites, {slow} ranked by obs"
        )


def ranked(graph: Graph, model: nn.Module, moments: Mapping[str, Moments], seconds: float) -> tuple[list[Tensor], int]:
    """Channel orders by obs, sites with the longest rows first. By L2 once ``seconds`` have passed."""
    sites = range(len(graph.sites))
    longest = [max(r.weight[0].numel() for r in view(graph, model, {}, index).readers) for index in sites]
    orders, start, slow = {}, time.perf_counter(), 0
    for index in sorted(sites, key=lambda i: -longest[i]):
        early = time.perf_counter() - start < seconds
        orders[index] = load_criterion("obs" if early else "l2")(view(graph, model, moments, index))
        slow += early
    return [orders[index] for index in sites], slow


if __name__ == "__main__":
    main()
