"""Shared by the benchmarks of the search: a task from the command line, and records that survive an interruption."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amc.config import from_dict
from amc.evaluation.evaluator import Evaluator
from amc.graph.sites import Graph
from amc.pipeline.opening import open_task
from amc.pipeline.record import Record
from amc.pipeline.stages import Stages
from amc.runtime.journal import Journal, read_records
from amc.runtime.locks import MeasurementLock
from amc.runtime.monitor import Silent
from amc.runtime.provenance import cpu_name
from amc.space.budget import Space
from amc.task import Task

RESULTS = Path(__file__).parent / "results"
IMAGES = 1000
"""Images of the search split by default."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A network on data under a budget, ready for evaluations."""

    task: Task
    graph: Graph
    space: Space
    evaluator: Evaluator
    stages: Stages


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options for network and data."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--weights", help="trained weights; resnet8 on digits has its own")
    parser.add_argument("--data", default="digits", help="as for amc search, such as imagefolder:PATH")
    parser.add_argument("--search-images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", help="as for amc search; a repeated call reads the calibration from it")
    return parser


def open_stages(asked: argparse.Namespace, flops: float, **search: Any) -> Stages:
    """The stages of `amc search`, before the first one."""
    torch.set_num_threads(asked.threads)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = from_dict(
        {
            "model": {"name": asked.model, "weights": asked.weights},
            "data": {"name": asked.data, "search": asked.search_images},
            "budget": {"flops": flops},
            "search": {"recalibrate": "off", "objective": "loss", **search},
            "threads": asked.threads,
            "cache": asked.cache,
            "out": str(folder),
        }
    )
    task = open_task(config)
    return Stages(Record(task, config, folder, Journal(None), Silent(), MeasurementLock()))


def open_bench(asked: argparse.Namespace, flops: float, **search: Any) -> Bench:
    """The stages of `amc search` up to the search. Scores on the search split only; the test split is not read."""
    stages = open_stages(asked, flops, **search)
    graph = stages.inspect()
    space = stages.space(graph)
    return Bench(stages.record.task, graph, space, stages.calibrate(graph, space), stages)


class Records:
    """JSON lines, one per piece of work. A recorded piece is not repeated."""

    def __init__(self, path: Path | None) -> None:
        self._journal = Journal(path)

    @classmethod
    def read(cls, path: Path) -> Records:
        """Read the records, also while another process adds to them."""
        found = cls(None)
        for record in read_records(path):
            found._journal.append(**record)
        return found

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def __call__(self, piece: str) -> dict[str, Any] | None:
        return next((r for r in self._journal.records("piece") if r["piece"] == piece), None)

    def add(self, piece: str, **record: Any) -> dict[str, Any]:
        self._journal.append("piece", piece=piece, **record)
        return {"piece": piece, **record}

    def all(self) -> list[dict[str, Any]]:
        return list(self._journal.records("piece"))


def machine() -> str:
    """Hardware and versions, for the head of a report."""
    import amc

    return f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}, amc {amc.__version__}"


def rounded(record: dict[str, Any]) -> str:
    return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()})
