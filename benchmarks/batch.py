"""Measure the cost of batches: throughput of workers, ten budgets against one, and scheduling for a large cluster.

    python -m benchmarks.batch workers      evaluations per second with one worker and with two
    python -m benchmarks.batch budgets      ten budgets of one network against one
    python -m benchmarks.batch scheduler    10,000 runs on 500 nodes, simulated
    python -m benchmarks.batch ray          the overhead of Ray per evaluation (needs Ray)

Each command prints Markdown. docs/benchmarks/batch.md holds the output, with the machine.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import multiprocessing as mp
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from amc.batch.drive import Failure, Limits, Observer, drive
from amc.batch.matrix import Job, read_matrix
from amc.batch.plan import plan
from amc.batch.pool import Processes
from amc.batch.status import statuses
from amc.config import Config, from_dict, to_dict
from amc.pipeline.choosing import Choosing
from amc.pipeline.opening import open_task
from amc.pipeline.record import Record
from amc.pipeline.stages import Stages
from amc.runtime.journal import Journal
from amc.runtime.locks import MeasurementLock
from amc.runtime.monitor import Silent

SEARCH_ONLY = {"finetune": {"epochs": 0}, "search": {"recalibrate": "off"}, "budget": {"flops": "0.5"}, "threads": 1}


def jobs_of(folder: Path, values: dict[str, Any]) -> list[Job]:
    path = folder / "batch.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return read_matrix(path, str(folder / "out")).jobs()


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


# Workers


def workers(evaluations: int = 600) -> None:
    """Print evaluations per second with one run and with two, and the gain that the machine offers to two processes."""
    rates, before = {}, os.getloadavg()[0]
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            searchers = {"random": {"evaluations": evaluations}}
            values = {"searchers": searchers, "seeds": list(range(count)), "common": {**SEARCH_ONLY, "cache": None}}
            jobs = jobs_of(Path(name), values)
            drive(jobs, 0, Processes(Limits(workers=count, threads=1), Path(name, "logs")), Observer())
            times = [[r["time"] for r in records(job.folder, "evaluation")] for job in jobs]
            begin, end = max(t[0] for t in times), min(t[-1] for t in times)
            rates[count] = sum(begin < t <= end for ts in times for t in ts) / (end - begin)
    alone, both = _spin(1), _spin(2)
    print(f"load before: {before:.1f}\n")
    print("| | one | two | ratio |\n|---|---|---|---|")
    print(
        f"| evaluations per second, resnet8 on digits | {rates[1]:.1f} | {rates[2]:.1f} | {rates[2] / rates[1]:.2f} |"
    )
    print(f"| the machine: matrix products per second | {alone:.0f} | {both:.0f} | {both / alone:.2f} |")


def _spin(count: int, seconds: float = 4.0) -> float:
    """Products of small matrices per second, summed over ``count`` independent processes."""
    with mp.get_context("spawn").Pool(count) as pool:
        pool.map(_products, [0.5] * count)
        return sum(pool.map(_products, [seconds] * count, chunksize=1))


def _products(seconds: float) -> float:
    import torch

    torch.set_num_threads(1)
    matrix, done, end = torch.randn(192, 192), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(matrix, matrix)
        done += 1
    return done / seconds


# Ten budgets


SHARES = [round(0.9 - 0.07 * i, 2) for i in range(10)]
CHOSEN = ("load", "inspect", "calibrate", "search", "refine")


def budgets(one: str, ten: str, evaluations: int, model: list[str], images: int, shares: list[float]) -> None:
    """Print the cost of ten budgets (0.9 to 0.27 of the MACs) by one searcher and of one budget (0.5) by another.

    Counted up to the choice of the policy, before fine-tuning. Each starts with an empty cache. Times are CPU seconds,
    so that other work on the machine does not count.
    """
    spent, scored, found = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:  # warm-up: work that a process does once
        _until_chosen(_budget(["resnet8"], one, 1, 0.5, 50, Path(name, "cache")), Path(name, "run"))
    for searcher, asked in ((one, [0.5]), (ten, shares)):
        with tempfile.TemporaryDirectory() as name:
            cache = Path(name, "cache")
            runs = []
            for share in asked:
                config = _budget(model, searcher, evaluations, share, images, cache)
                runs.append(_until_chosen(config, Path(name, f"run{share}")))
                told = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in runs[-1][0].items())
                print(f"{searcher} at {share}: {told}; {100 * runs[-1][1]:.2f} %", file=sys.stderr, flush=True)
            spent[len(asked)] = {stage: sum(seconds[stage] for seconds, _ in runs) for stage in CHOSEN}
            scored[len(asked)] = sum(len(p.read_text().splitlines()) - 1 for p in (cache / "scores").glob("*.jsonl"))
            found[len(asked)] = [metric for _, metric in runs]
    (_, first), (count, many) = spent.items()
    print(f"\n{model[0]}, {evaluations} evaluations, {images} search images: one budget by {one}, {count} by {ten}\n")
    print(f"| stage | one budget, s | {count} budgets, s | ratio |\n|---|---|---|---|")
    for stage in CHOSEN:
        print(f"| {stage} | {first[stage]:.2f} | {many[stage]:.2f} | {many[stage] / max(first[stage], 1e-3):.1f} |")
    print(f"| policies scored | {scored[1]} | {scored[count]} | {scored[count] / scored[1]:.1f} |")
    totals = [sum(stages.values()) for stages in (first, many)]
    print(f"| **until the policy is chosen** | {totals[0]:.2f} | {totals[1]:.2f} | **{totals[1] / totals[0]:.1f}** |\n")
    told = ", ".join(f"{share}: {100 * metric:.2f} %" for share, metric in zip(shares, found[count], strict=True))
    print(f"The chosen policies before fine-tuning, on the search split, by the share of the MACs: {told} "
          f"(the one budget, 0.5: {100 * found[1][0]:.2f} %).", flush=True)  # fmt: skip


def _budget(model: list[str], searcher: str, evaluations: int, share: float, images: int, cache: Path) -> Config:
    name, weights, data = [*model, None, None][:3]
    return from_dict({
        **SEARCH_ONLY, "budget": {"flops": str(share)}, "cache": str(cache),
        "model": {"name": name, "weights": weights},
        "data": {"search": images, **({"name": data} if data else {})},
        "search": {"recalibrate": "off", "searcher": searcher, "evaluations": evaluations},
    })  # fmt: skip


def _until_chosen(config: Config, folder: Path) -> tuple[dict[str, float], float]:
    """Seconds of each stage of a run up to the choice of its policy, and the policy's metric before fine-tuning."""
    seconds: dict[str, float] = {}
    seconds["load"], task = _timed(lambda: open_task(config))
    with Journal(folder / "journal.jsonl") as journal, MeasurementLock() as lock:
        record = Record(task, config, folder, journal, Silent(), lock)
        flow, choosing = Stages(record), Choosing(record)
        seconds["inspect"], graph = _timed(flow.inspect)
        later, space = _timed(lambda: flow.space(graph))
        seconds["inspect"] += later
        seconds["calibrate"], evaluator = _timed(lambda: flow.calibrate(graph, space))
        seconds["search"], found = _timed(lambda: flow.search(graph, space, evaluator))
        shortlist = choosing.shortlist(found or (), space, None)
        assert shortlist is not None
        seconds["refine"], (_, candidates) = _timed(lambda: choosing.choose(shortlist.evaluations, evaluator))
    return seconds, next(c["before"] for c in candidates if c["chosen"])


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


# The scheduler


class Simulated:
    """A pool of nodes in virtual time. Runs take about ten minutes; some nodes die during a run."""

    def __init__(self, nodes: int, seed: int = 0) -> None:
        self._nodes, self._dice = nodes, random.Random(seed)
        self._clock, self._numbers = 0.0, itertools.count()
        self._ends: list[tuple[float, int, Failure | None]] = []

    def room(self) -> int:
        return self._nodes

    def begin(self, job: Job, attempt: int) -> Hashable:
        length, dies = self._dice.lognormvariate(6.4, 0.5), self._dice.random() < 0.01
        number = next(self._numbers)
        failure = Failure("its node died", True) if dies else None
        heapq.heappush(self._ends, (self._clock + length * (0.5 if dies else 1), number, failure))
        return number

    def ended(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        self._clock, number, failure = heapq.heappop(self._ends)
        return [(number, failure)]

    def stop(self) -> None:
        self.hours = self._clock / 3600


def scheduler(count: int = 10_000, nodes: int = 500) -> None:
    """Print the time that this machine needs to schedule ``count`` runs and to read their state."""
    from amc.batch.run import BatchRecorder

    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = {"budgets": [{"flops": f"{i}k"} for i in range(1, 101)], "seeds": list(range(count // 100)),
                  "searchers": ["tpe"], "common": {}}  # fmt: skip
        seconds, jobs = timed(lambda: jobs_of(folder, values))
        rows.append((f"reading the matrix of {count:,} runs", seconds, "once"))
        force = Simulated(nodes)
        with Journal(folder / "out/batch.jsonl") as journal:
            journal.append("batch", runs=[{"name": j.name, "place": dict(j.place)} for j in jobs], time=0.0)
            seconds, _ = timed(lambda: drive(jobs, 1, force, BatchRecorder(journal, Observer())))
        rows.append((f"scheduling them on {nodes} nodes ({force.hours:.1f} h of virtual time)", seconds, "in total"))
        for job in jobs:
            _fake(job)
        seconds, _ = timed(lambda: plan(jobs))
        rows.append(("reading the state of the runs, all started", seconds, "once"))
        seconds, _ = timed(lambda: statuses(folder / "out"))
        rows.append(("`amc status`", seconds, "per call"))
    print(f"| {count:,} runs, {nodes} nodes | seconds | |\n|---|---|---|")
    for what, spent, when in rows:
        print(f"| {what} | {spent:.2f} | {when} |")


def _fake(job: Job) -> None:
    """Write the folder of a run with sixty evaluations."""
    write_plain(job.folder / "config.yaml", yaml.safe_dump(to_dict(job.config)))
    lines = [{"kind": "stage", "name": "inspect", "seconds": 1.0}]
    lines += [
        {"kind": "evaluation", "choice": list(range(20)), "loss": 1.0, "metric": 0.5, "time": float(i)}
        for i in range(60)
    ]
    write_plain(job.folder / "journal.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


# Ray


def ray(count: int = 300) -> None:
    """Print the milliseconds per evaluation in this process, with one Ray actor, and with two at once."""
    from ray.cluster_utils import Cluster

    from amc.batch.cluster import RayBackend, connected
    from amc.batch.worker import evaluator_of

    config = from_dict({**SEARCH_ONLY, "data": {"search": 50, "calibration": 64}})
    rows = []
    with tempfile.TemporaryDirectory() as name:
        evaluator = evaluator_of(config, Path(name))
        full = evaluator.networks.full
        dice = random.Random(0)
        choices = list({tuple(dice.randint(1, width) for width in full) for _ in range(2 * count)})[:count]
        for choice in choices[:20]:
            evaluator.score(choice)
        seconds, scores = timed(lambda: [evaluator.score(choice) for choice in choices])
        rows.append(("in this process", seconds))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        with connected(cluster.address):
            ways = (
                (1, "one Ray actor, one call after the other"),
                (2, "two Ray actors, policies announced in advance"),
            )
            for workers_, told in ways:
                remote = RayBackend(config, evaluator, workers_)
                remote.announce(choices[:20])
                [remote.score(choice) for choice in choices[:20]]
                if workers_ > 1:
                    seconds, found = timed(lambda r=remote: (r.announce(choices), [r.score(c) for c in choices])[1])
                else:
                    seconds, found = timed(lambda r=remote: [r.score(choice) for choice in choices])
                assert [s.metric for s in found] == [s.metric for s in scores]
                rows.append((told, seconds))
        cluster.shutdown()
    print("| | ms per evaluation | difference |\n|---|---|---|")
    for told, seconds in rows:
        print(f"| {told} | {1000 * seconds / count:.2f} | {1000 * (seconds - rows[0][1]) / count:+.2f} |")


def write_plain(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("workers", "budgets", "scheduler", "ray"))
    parser.add_argument("--one", default="hybrid", help="searcher for the one budget")
    parser.add_argument("--ten", default="hybrid", help="searcher for the ten budgets")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--model", nargs="*", default=["resnet8"], help="name, weights, data")
    parser.add_argument("--images", type=int, default=1000, help="images of the search split")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="the budgets, as shares of the MACs")
    parsed = parser.parse_args()
    if parsed.what == "budgets":
        budgets(parsed.one, parsed.ten, parsed.evaluations, parsed.model, parsed.images, parsed.shares)
    else:
        {"workers": workers, "scheduler": scheduler, "ray": ray}[parsed.what]()


if __name__ == "__main__":
    main()
