"""Measure the time that searchers themselves need: milliseconds per proposal, on a problem whose evaluations are free.

    python -m benchmarks.overhead            # resumes; one line per searcher in benchmarks/results/overhead.jsonl
    python -m benchmarks.overhead --report

The problem has the size of ResNet-56: 27 independent sites with 13 settings each, and half of the MACs as its budget.
One seed, one thread. The mean includes what a searcher does once (loading its library, tables); the median of the last
tenth does not.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from amc.envs.toy import ToyCosts
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Observer, Problem
from amc.evaluation.score import Score
from amc.graph.sites import SiteFeatures
from amc.search import searchers
from amc.space.budget import Space
from amc.space.sites import Choice, numeric_sites
from benchmarks.bench import RESULTS, Records, machine

SITES, CHANNELS = 27, 64


def free_problem(observer: Observer | None = None) -> Problem:
    """A problem with widths in steps of four. Its loss is a sum over the sites and takes microseconds."""
    rng = np.random.default_rng(0)
    price, importance = rng.integers(50, 200, SITES), rng.uniform(0.1, 1.0, SITES)
    settings = tuple(range(16, CHANNELS + 1, 4))
    costs = ToyCosts(price)
    limit = 0.5 * float(costs.costs([(CHANNELS,) * SITES])["macs"][0])
    space = Space(numeric_sites([f"site{s}" for s in range(SITES)], (settings,) * SITES), costs, {"macs": limit})

    def score(choice: Choice) -> Score:
        loss = float(importance @ (1 - np.array(choice) / CHANNELS) ** 2) / SITES
        return Score(loss, 1 - loss)

    def error(site: int, setting: int) -> float:
        return float(importance[site] * (1 - setting / CHANNELS) ** 2)

    features = [SiteFeatures(CHANNELS, CHANNELS, 8, 8, 1, 3, float(p * CHANNELS)) for p in price]
    return Problem(space, features, FunctionBackend(score, error), observer=observer)


def overhead(name: str, proposals: int) -> tuple[float, float]:
    """Milliseconds per proposal: the mean over all proposals, and the median over the last tenth."""
    search, times = searchers()[name].load(), [time.perf_counter()]
    search(free_problem(lambda problem, evaluation: times.append(time.perf_counter())), proposals, 0)
    gaps = np.diff(times) * 1e3
    return float(gaps.mean()), statistics.median(gaps[-max(1, proposals // 10) :])


def report(records: Records) -> str:
    """A Markdown table with one row per searcher."""
    lines = [
        f"{SITES} sites with 13 settings each, half of the MACs, evaluations of microseconds; one seed, one thread.",
        f"{(records('about') or {}).get('machine')}.",
        "",
        "| searcher | proposals | ms per proposal, mean | ms per proposal, median of the last tenth |",
        "|---|---|---|---|",
    ]
    for name in searchers():
        row = records(name)
        if row:
            lines.append(f"| {name} | {row['proposals']} | {row['mean']:.2f} | {row['last']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposals", type=int, default=200)
    parser.add_argument("--report", action="store_true", help="print the table of all records")
    parser.add_argument("names", nargs="*", metavar="SEARCHER", help="searchers to measure [all]")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with Records(RESULTS / "overhead.jsonl") as records:
        if not records("about"):
            records.add("about", machine=machine())
        for name in () if asked.report else asked.names or searchers():
            if not records(name):
                mean, last = overhead(name, asked.proposals)
                print(records.add(name, proposals=asked.proposals, mean=mean, last=last), flush=True)
        print(report(records))


if __name__ == "__main__":
    main()
