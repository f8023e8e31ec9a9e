"""What searchers themselves cost: seconds per proposal where an evaluation is free.

    python -m benchmarks.overhead            # resumes; one line a searcher in benchmarks/results/overhead.jsonl
    python -m benchmarks.overhead --report

The problem is as large as ResNet-56: 27 sites that meet nobody, each with 13 settings, and MACs to be halved. One seed,
one thread. The mean includes what a searcher does once (loading its library, tables); the median of the last tenth does
not.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from amc.envs.toy import ToyCosts
from amc.evaluation.problem import Problem, SiteFeatures
from amc.evaluation.score import Score
from amc.search import searchers
from amc.space.budget import Space
from amc.space.sites import Choice, numeric_sites
from benchmarks.bench import RESULTS, Records, machine

SITES, CHANNELS = 27, 64


def free_problem() -> Problem:
    """Legal widths in steps of four; the loss is a sum over the sites and costs microseconds."""
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
    return Problem(space, features, score, error=error)


def overhead(name: str, proposals: int) -> tuple[float, float]:
    """Milliseconds of one proposal: the mean over all of them, and over the last tenth."""
    search, problem = searchers()[name].load(), free_problem()
    times = [time.perf_counter()]
    problem._observer = lambda evaluation, number: times.append(time.perf_counter())
    search(problem, proposals, 0)
    gaps = np.diff(times) * 1e3
    return float(gaps.mean()), statistics.median(gaps[-max(1, proposals // 10) :])


def report(records: Records) -> str:
    """The searchers as a Markdown table."""
    lines = [
        f"{SITES} sites of 13 settings each, MACs halved, an evaluation that costs microseconds; one seed, one thread.",
        f"{(records('about') or {}).get('machine')}.",
        "",
        "| searcher | proposals | ms a proposal, mean | median of the last tenth |",
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
    parser.add_argument("--report", action="store_true", help="print what has been measured")
    parser.add_argument("names", nargs="*", metavar="SEARCHER", help="which [all]")
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
