"""What searchers themselves cost: seconds per proposal where an evaluation is free.

    python benchmarks/overhead.py --out docs/benchmarks/overhead.md

The problem is as large as ResNet-56: 27 sites that meet nobody, each with 13 settings, and MACs to be halved.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from amc.budget import Space
from amc.envs.toy import ToyCosts
from amc.evaluate import Score
from amc.policy import Choice
from amc.problem import Problem, SiteFeatures
from amc.search import searchers

SITES, CHANNELS = 27, 64


def free_problem() -> Problem:
    """Legal widths in steps of four; the loss is a sum over the sites and costs microseconds."""
    rng = np.random.default_rng(0)
    price, importance = rng.integers(50, 200, SITES), rng.uniform(0.1, 1.0, SITES)
    settings = tuple(range(16, CHANNELS + 1, 4))
    costs = ToyCosts(price)
    limit = 0.5 * float(costs.costs([(CHANNELS,) * SITES])["macs"][0])
    space = Space(tuple(f"site{s}" for s in range(SITES)), (settings,) * SITES, costs, {"macs": limit})

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


def _rows(path: Path) -> dict[str, str]:
    """The rows of an earlier table, which those that are taken anew replace."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): line for line in lines[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--proposals", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*", metavar="SEARCHER", help="which [all]")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    rows = _rows(parsed.out) if parsed.out and parsed.out.exists() else {}
    for name in parsed.names or searchers():
        mean, last = overhead(name, parsed.proposals)
        rows[name] = f"| {name} | {mean:.2f} | {last:.2f} |"
        print(rows[name], flush=True)
    if parsed.out:
        machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
        told = f"""# What searchers themselves cost

{SITES} sites of 13 settings each, MACs halved, an evaluation that costs microseconds; {parsed.proposals} proposals of
each searcher, one seed, one thread. {machine}. Made by `python benchmarks/overhead.py --out {parsed.out}`.
The mean includes what a searcher does once (loading its library, tables); the median of the last tenth does not.
Taken on two virtual CPUs of one core that other work shared, so times are up to twice those of a quiet machine.

| searcher | ms a proposal, mean | the last ones |
|---|---|---|
"""
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(told + "\n".join(rows[n] for n in searchers() if n in rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
