"""What batches cost: throughput of workers, ten budgets for one, and the scheduler's own cost for a large cluster.

    python -m benchmarks.batch workers      evaluations a second with one worker and with two
    python -m benchmarks.batch budgets      ten budgets of one network against one
    python -m benchmarks.batch scheduler    10,000 runs on 500 nodes, simulated
    python -m benchmarks.batch ray          what Ray adds to an evaluation (needs Ray)

Each prints Markdown; docs/benchmarks/batch.md holds what they printed, with the machine.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import multiprocessing as mp
import os
import random
import statistics
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
from amc.batch.run import run_batch
from amc.batch.status import statuses
from amc.config import to_dict

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
    """Evaluations a second while one run searches, and while two do; and what the machine itself gives two at all."""
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
    print(f"| evaluations a second, resnet8 on digits | {rates[1]:.1f} | {rates[2]:.1f} | {rates[2] / rates[1]:.2f} |")
    print(f"| the machine: matrix products a second | {alone:.0f} | {both:.0f} | {both / alone:.2f} |")


def _spin(count: int, seconds: float = 4.0) -> float:
    """Products of small matrices a second, in so many processes at once that share nothing."""
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


def budgets(searcher: str, evaluations: int, model: list[str]) -> None:
    """Seconds of each stage for one budget, and for ten of the same network, each with an empty cache."""
    shares = [round(0.9 - 0.07 * i, 2) for i in range(10)]
    common = {
        **SEARCH_ONLY,
        "search": {"recalibrate": "off"},
        "model": dict(zip(("name", "weights"), model, strict=False)),
    }
    if len(model) > 2:
        common["data"] = {"name": model[2], "search": 1000}
    del common["budget"]
    spent: dict[int, dict[str, float]] = {}
    scored: dict[int, int] = {}
    found: dict[int, float] = {}
    for count in (1, 10):
        with tempfile.TemporaryDirectory() as name:
            axis = [{"flops": share} for share in (shares if count == 10 else [0.5])]
            searchers = {searcher: {"evaluations": evaluations}}
            values = {"budgets": axis, "searchers": searchers, "common": {**common, "cache": str(Path(name, "cache"))}}
            jobs = jobs_of(Path(name), values)
            run_batch(jobs, Path(name, "out"), Limits(threads=1), Observer())
            tables = Path(name, "cache", "scores").glob("*.jsonl")
            scored[count] = sum(len(path.read_text().splitlines()) - 1 for path in tables)
            spent[count] = {}
            results = [json.loads((job.folder / "result.json").read_text()) for job in jobs]
            found[count] = statistics.mean(result["final"]["search"] for result in results)
            for job in jobs:
                for r in records(job.folder, "stage"):
                    spent[count][r["name"]] = spent[count].get(r["name"], 0.0) + r["seconds"]
    print(f"\n{model[0]}, {searcher}, {evaluations} evaluations a budget\n")
    print("| stage | one budget, s | ten budgets, s | ratio |\n|---|---|---|---|")
    for stage, one in spent[1].items():
        print(f"| {stage} | {one:.2f} | {spent[10][stage]:.2f} | {spent[10][stage] / max(one, 1e-3):.1f} |")
    print(f"| metric on the search split, mean | {100 * found[1]:.2f} % | {100 * found[10]:.2f} % | |")
    print(f"| policies scored | {scored[1]} | {scored[10]} | {scored[10] / scored[1]:.1f} |")
    for told, stages in (("until the policy is found", ("inspect", "calibrate", "search")), ("all", tuple(spent[1]))):
        one, ten = (sum(spent[count][stage] for stage in stages) for count in (1, 10))
        print(f"| **{told}** | {one:.2f} | {ten:.2f} | **{ten / one:.1f}** |")


# The scheduler


class Simulated:
    """A workforce of nodes in virtual time: runs take about ten minutes, and some nodes die in the middle."""

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
    """What this machine spends on scheduling, and on looking at, so many runs."""
    from amc.batch.run import _Record
    from amc.journal import Journal

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
            seconds, _ = timed(lambda: drive(jobs, 1, force, _Record(journal, Observer())))
        rows.append((f"scheduling them on {nodes} nodes ({force.hours:.1f} h of virtual time)", seconds, "in all"))
        for job in jobs:
            _fake(job)
        seconds, _ = timed(lambda: plan(jobs))
        rows.append(("seeing what is there already, all begun", seconds, "once"))
        seconds, _ = timed(lambda: statuses(folder / "out"))
        rows.append(("`amc status`, one look", seconds, "a look"))
    print(f"| {count:,} runs, {nodes} nodes | seconds | |\n|---|---|---|")
    for what, spent, when in rows:
        print(f"| {what} | {spent:.2f} | {when} |")


def _fake(job: Job) -> None:
    """The folder of a run that has done sixty evaluations."""
    write_plain(job.folder / "config.yaml", yaml.safe_dump(to_dict(job.config)))
    lines = [{"kind": "stage", "name": "inspect", "seconds": 1.0}]
    lines += [
        {"kind": "evaluation", "choice": list(range(20)), "loss": 1.0, "metric": 0.5, "time": float(i)}
        for i in range(60)
    ]
    write_plain(job.folder / "journal.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


# Ray


def ray(count: int = 300) -> None:
    """Milliseconds of an evaluation here and as a Ray task one after the other, and with two evaluators at once."""
    from ray.cluster_utils import Cluster

    from amc.batch.cluster import RemoteScores, connected
    from amc.batch.worker import evaluator_of
    from amc.config import from_dict

    config = from_dict({**SEARCH_ONLY, "data": {"search": 50, "calibration": 64}})
    rows = []
    with tempfile.TemporaryDirectory() as name:
        evaluator = evaluator_of(config, Path(name))
        full = [site.channels for site in evaluator._graph.sites]
        dice = random.Random(0)
        choices = list({tuple(dice.randint(1, width) for width in full) for _ in range(2 * count)})[:count]
        for choice in choices[:20]:
            evaluator(choice)
        seconds, scores = timed(lambda: [evaluator(choice) for choice in choices])
        rows.append(("in this process", seconds))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        with connected(cluster.address):
            for workers_, told in ((1, "one Ray actor, one after the other"), (2, "two Ray actors, announced")):
                remote = RemoteScores(config, evaluator, workers_)
                remote.announce(choices[:20])
                [remote(choice) for choice in choices[:20]]
                if workers_ > 1:
                    seconds, found = timed(lambda r=remote: (r.announce(choices), [r(c) for c in choices])[1])
                else:
                    seconds, found = timed(lambda r=remote: [r(choice) for choice in choices])
                assert [s.metric for s in found] == [s.metric for s in scores]
                rows.append((told, seconds))
        cluster.shutdown()
    print("| | ms an evaluation | more than here |\n|---|---|---|")
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
    parser.add_argument("--searcher", default="allocate")
    parser.add_argument("--evaluations", type=int, default=1)
    parser.add_argument("--model", nargs="*", default=["resnet8"], help="name, weights, data")
    parsed = parser.parse_args()
    if parsed.what == "budgets":
        budgets(parsed.searcher, parsed.evaluations, parsed.model)
    else:
        {"workers": workers, "scheduler": scheduler, "ray": ray}[parsed.what]()


if __name__ == "__main__":
    main()
