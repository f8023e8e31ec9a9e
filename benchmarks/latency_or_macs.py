"""Compare networks searched under a latency limit with networks searched under a MACs limit, at equal accuracy.

::

    python -m benchmarks.latency_or_macs --step search --model resnet56 --weights W --data imagefolder:PATH --profile P
    python -m benchmarks.latency_or_macs --step train ...    train every network that was found for the same few steps
    python -m benchmarks.latency_or_macs --step measure ...  time all networks, interleaved with the original
    python -m benchmarks.latency --part table        write docs/benchmarks/latency.md from all records

Both searches use the same searcher, evaluator, number of evaluations and seed. Only the limit differs. The result is
the best of the five top policies by full evaluation. ``--profile`` is a file of `amc profile` for this network.
Searches score on the search split. Only trained networks are scored on the test split, once each. A piece is one
search, one training or the measurement. `benchmarks/results/latency-or-macs-NETWORK.jsonl` holds one line per piece,
and a recorded piece is not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from amc.evaluation.problem import Problem
from amc.evaluation.reward import loss as loss_reward
from amc.latency import measure
from amc.latency.prediction import CorrectedCosts, effective_widths
from amc.latency.profile import LearnedModel, Profile
from amc.pipeline.stages import Stages
from amc.pipeline.timing import RunTiming
from amc.runtime.journal import Journal, read_records
from amc.search import load_searcher
from amc.space.budget import Space
from amc.space.sites import numeric_sites
from amc.task import evaluate, nested
from amc.train import make_plan, train
from benchmarks.bench import RESULTS, Bench, Records, arguments, machine, open_bench, open_stages, rounded

ABOUT = (
    "Each network was searched under latency limits and under MACs limits, with the same searcher. Times are shares of "
    "the original's time. The tables at equal accuracy take every network searched for MACs, and give the time of an "
    "equally accurate network searched for latency, interpolated between the networks found."
)
"""What the report says above its tables."""
HEAD = (
    "| accuracy | MACs limit | time, searched for MACs | time, searched for latency | ratio of the times |",
    "|---|---|---|---|---|",
)
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8)
"""Limits on MACs and on latency, as shares of the original."""


def limited(bench: Bench, model: LearnedModel, resource: str, share: float) -> Space:
    """The space of a run with this single limit."""
    if resource == "macs":
        return replace(bench.space, limits={"macs": share * bench.space.costs(bench.space.full)["macs"]})
    removable = {branch.site for branch in bench.space.model.branches}
    widths = [(0, *s.sizes) if number in removable else s.sizes for number, s in enumerate(bench.space.sites)]
    settings = effective_widths(model.predict_all, widths)
    within = model.tables.non_decreasing(settings)
    limit = share * float(within([bench.space.full])[0])
    costs = CorrectedCosts(bench.space.model, within, 1.0)
    return Space(numeric_sites(bench.space.names, settings), costs, {"latency": limit})


def searched(bench: Bench, space: Space, evaluations: int, record: Path) -> dict[str, Any]:
    """One search and its best policy by full evaluation. The journal ``record`` keeps the evaluations."""
    with Journal(record) as journal:
        problem = Problem(space, [site.features for site in bench.graph.sites], bench.evaluator, loss_reward, journal)
        load_searcher("hybrid")(problem, evaluations, 0)
    best = [(bench.evaluator.refined_score(e.choice), e.choice) for e in problem.best(5)]
    score, choice = min(best, key=lambda pair: pair[0].loss)
    macs = space.costs(choice)["macs"] / space.costs(space.full)["macs"]
    return {"choice": list(choice), "loss": score.loss, "metric": score.metric, "macs": macs}


def trained(bench: Bench, choice: tuple[int, ...], count: int) -> dict[str, float]:
    """Accuracy on the search split and on the test split after ``count`` training steps."""
    network = bench.evaluator.pruned(choice)
    plan = make_plan(bench.stages.record.config.finetune, bench.task, 1.0, 0)
    train(network, bench.task, replace(plan, steps=count, precision="bfloat16"), bench.task.model)
    splits = bench.task.splits
    return {part: evaluate(network, bench.task, getattr(splits, part))[1] for part in ("search", "test")}


def measured(stages: Stages, choices: dict[str, tuple[int, ...]], seconds: float) -> dict[str, dict[str, float]]:
    """Time of every network as a share of the original's, with the 95 % interval."""
    meter = RunTiming(stages.record, stages.inspect()).bench()
    with tempfile.TemporaryDirectory() as folder:
        files = {"original": Path(folder, "original.onnx")}
        files["original"].write_bytes(meter.model(meter.full))
        for number, (name, choice) in enumerate(choices.items()):
            files[name] = Path(folder, f"{number}.onnx")
            files[name].write_bytes(meter.model(choice))
        found = measure(files, nested.feeds(stages.record.task.example), 1, seconds, precision=0.003)
    return {
        name: {"ms": x.p10_ms, "ratio": x.ratio, "low": x.ratio_low, "high": x.ratio_high}
        for name, x in found.latencies.items()
    }


def faster(rows: list[dict[str, Any]], accuracy: str) -> Iterator[str]:
    """Table rows: for every network searched for MACs, the time of an equally accurate one searched for latency.

    Times are interpolated along the front of the networks searched for latency. Below it, the fastest one counts.
    """
    frontier, times = [], []
    for row in sorted((r for r in rows if r["asked"] == "latency"), key=lambda r: float(r["ratio"])):
        if not frontier or row[accuracy] > frontier[-1]:
            frontier.append(row[accuracy])
            times.append(row["ratio"])
    for row in sorted((r for r in rows if r["asked"] == "macs"), key=lambda r: float(r["ratio"])):
        known = f"{100 * row[accuracy]:.2f} % | {row['share']:g} | {row['ratio']:.3f}"
        if row[accuracy] > frontier[-1]:
            yield f"| {known} | accuracy not reached | |"
            continue
        time = float(np.interp(row[accuracy], frontier, times))
        yield f"| {known} | {time:.3f} | {time / row['ratio']:.3f} |"


def joined(records: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per network: the search, its training and its time."""
    times = records.get("measure", {}).get("times", {})
    rows = []
    for row in records.values():
        if "choice" in row:
            after = records.get(f"train {row['piece']}", {})
            own = {"after": after.get("search"), "test": after.get("test"), **times.get(row["piece"], {})}
            rows.append({**row, **own})
    return rows


def report(path: Path) -> list[str]:
    """Markdown tables for one network."""
    records = {record["piece"]: record for record in read_records(path)}
    about, rows = records.get("about", {}), joined(records)
    lines = [
        f"{about.get('machine')}; {about.get('images')} images of the search split, {about.get('evaluations')} "
        "evaluations per search.", "",
        "| limit | MACs | time, 95 % interval | before training | search split | test split |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in sorted(rows, key=lambda r: (r["asked"], r["share"])):
        after = [f"{100 * row[key]:.2f} %" if row[key] is not None else "" for key in ("after", "test")]
        time = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})" if "ratio" in row else ""
        lines.append(
            f"| {row['asked']} {row['share']:g} | {row['macs']:.3f} | {time} | {100 * row['metric']:.2f} % | "
            f"{' | '.join(after)} |"
        )
    if rows and all("ratio" in row for row in rows):
        lines += ["", "At equal accuracy before training:", "", *HEAD, *faster(rows, "metric")]
        done = [row for row in rows if row["after"] is not None]
        if {row["asked"] for row in done} == {"latency", "macs"}:
            for key, split in (("after", "search"), ("test", "test")):
                lines += ["", f"At equal accuracy on the {split} split after training:", "", *HEAD, *faster(done, key)]
    return lines


def main() -> None:
    """Continue with one step."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--step", choices=["search", "train", "measure"], required=True)
    parser.add_argument("--profile", type=Path, help="a file written by amc profile")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    parser.add_argument("--seconds", type=float, default=100.0, help="seconds of measuring")
    parser.add_argument("--work", type=Path, default=Path("amc-runs/benchmarks/latency-or-macs"))
    asked = parser.parse_args()
    with Records(RESULTS / f"latency-or-macs-{asked.model}.jsonl") as records:
        if not records("about"):
            records.add("about", machine=machine(), images=asked.search_images, evaluations=asked.evaluations)
        if asked.step == "measure":
            if not records("measure"):
                print(records.add("measure", times=measured(open_stages(asked, 0.9), found(records), asked.seconds)))
            return
        bench = open_bench(asked, 0.9)
        if asked.step == "search":
            _searches(asked, bench, records)
        for piece, choice in found(records).items() if asked.step == "train" else ():
            if not records(f"train {piece}"):
                print(rounded(records.add(f"train {piece}", **trained(bench, choice, asked.steps))), flush=True)


def _searches(asked: argparse.Namespace, bench: Bench, records: Records) -> None:
    model = LearnedModel(Profile.load(asked.profile))
    for share in asked.shares:
        for resource in ("latency", "macs"):
            if not records(f"{resource} {share}"):
                kept = asked.work / f"{asked.model}-{resource}-{share}.jsonl"
                own = searched(bench, limited(bench, model, resource, share), asked.evaluations, kept)
                done = records.add(f"{resource} {share}", asked=resource, share=share, **own)
                print(rounded({**done, "choice": None}), flush=True)


def found(records: Records) -> dict[str, tuple[int, ...]]:
    """The best policy of every search so far."""
    return {row["piece"]: tuple(row["choice"]) for row in records.all() if "choice" in row}


if __name__ == "__main__":
    main()
