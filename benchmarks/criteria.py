"""Which criterion keeps most of a network that is pruned uniformly and not trained?

Every criterion orders the channels of digits' resnet8 by a random half of the calibration split; the uniform policy at
a share of the MACs is then scored on the whole search split, as cut, and with layers re-solved by least squares. The
test split is not read.

    python -m benchmarks.criteria --seeds 3
    python -m benchmarks.criteria --report

Resumable: `benchmarks/results/criteria-NETWORK.jsonl` holds a line for a criterion, seed, budget and way to re-solve.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np
from torch import Tensor

from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.sites import Graph
from amc.importance import CRITERIA, Need, collect, rank
from amc.reconstruction.moments import Moments, readers
from amc.reconstruction.moments import collect as collect_moments
from amc.space.sites import Choice
from amc.task import Task, evaluate
from amc.task.splits import sample
from benchmarks.bench import RESULTS, Records, arguments, machine, open_stages, rounded

SHARES = (0.5, 0.3)
"""Of the original's MACs."""
WAYS = {"cut": False, "re-solved": True}


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network with a random half of its calibration split, and what was collected there."""

    task: Task
    graph: Graph
    seed: int
    moments: Mapping[str, Moments]
    collected: dict[Need, dict[str, Tensor]]

    @classmethod
    def by(cls, task: Task, graph: Graph, seed: int) -> Calibrated:
        """The half that a seed draws."""
        split = task.splits.calibration
        own = replace(task, splits=replace(task.splits, calibration=sample(split, len(split) // 2, seed)))
        return cls(own, graph, seed, collect_moments(own, readers(graph, own.model), seed), {})

    def orders(self, name: str) -> list[Tensor]:
        """The channels of every site, the most important first."""
        for need in CRITERIA[name].needs - self.collected.keys():
            self.collected[need] = collect(need, self.task, self.graph)
        return rank(name, self.graph, self.task.model, self.moments, self.collected, self.seed)


def measure(asked: argparse.Namespace, records: Records) -> None:
    """Score what is not in the records."""
    spaces = {}
    for share in SHARES:
        stages = open_stages(asked, share)
        graph = stages.inspect()
        space = stages.space(graph)
        spaces[share] = space, space.fit(np.ones(len(space.names)))
    task = stages.record.task
    if records("original") is None:
        loss, metric = evaluate(task.model, task, task.splits.search)
        records.add("original", loss=loss, metric=metric, images=len(task.splits.search))
    for seed in range(asked.seeds):
        calibrated = None
        for name in asked.criteria.split(",") if asked.criteria else CRITERIA:
            if records(f"{name} {seed}") is not None:
                continue
            calibrated = calibrated or Calibrated.by(task, graph, seed)
            start = time.process_time()
            orders = calibrated.orders(name)
            seconds = time.process_time() - start
            found = {f"{share:g} {way}": scored(calibrated, orders, choice, solve)
                     for share, (_, choice) in spaces.items() for way, solve in WAYS.items()}  # fmt: skip
            records.add(f"{name} {seed}", criterion=name, seed=seed, seconds=seconds, scores=found)
            print(rounded({"criterion": name, "seed": seed, **{k: v["metric"] for k, v in found.items()}}), flush=True)


def scored(calibrated: Calibrated, orders: list[Tensor], choice: Choice, solve: bool) -> dict[str, float]:
    """Loss and metric of a policy on the search split."""
    settings = EvaluationSettings("loss", reconstruction=Reconstruction(solve=solve))
    evaluator = Evaluator(calibrated.task, calibrated.graph, orders, calibrated.moments, settings)
    score = evaluator.score(choice)
    return {"loss": score.loss, "metric": score.metric}


def report(asked: argparse.Namespace, records: Records) -> str:
    """The table, the best first by the mean of all columns."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records.all():
        if "criterion" in record:
            rows.setdefault(record["criterion"], []).append(record)
    columns = {f"{s:g} {way}": f"{100 * s:.0f} % of MACs, {way}" for s in SHARES for way in WAYS}
    original = records("original") or {}
    by_mean = sorted(rows, key=lambda name: -mean(r["scores"][c]["metric"] for r in rows[name] for c in columns))
    seeds = max(map(len, rows.values()), default=0)
    lines = [
        "# Criteria, before training",
        "",
        f"`python -m benchmarks.criteria --model {asked.model} --data {asked.data} --seeds {seeds}`, then `--report`.",
        f"{machine()}.",
        "",
        "Accuracy in % on the search split after uniform pruning to a share of the MACs: as cut, and with every layer",
        "re-solved by least squares on the original's inputs. No training, no sequential reconstruction. Mean and",
        f"standard deviation over {seeds} random halves of the calibration split; the split's",
        f"{original.get('images', 0)} images decide to about a point. The original has "
        f"{100 * original.get('metric', 0.0):.1f} %.",
        "Seconds are process time for one order; what is collected counts for the criterion that asked first.",
        "",
        "| criterion | "
        + " | ".join(f"{100 * s:.0f} % of MACs, {way}" for s in SHARES for way in WAYS)
        + " | seconds |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for name in by_mean:
        cells = [_cell([100 * r["scores"][c]["metric"] for r in rows[name]]) for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(r['seconds'] for r in rows[name]):.1f} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--criteria", help="names, separated by commas [all]")
    parser.add_argument("--report", action="store_true", help="print the table of what was measured")
    asked = parser.parse_args()
    path = RESULTS / f"criteria-{asked.model}.jsonl"
    if asked.report:
        print(report(asked, Records.read(path)))
        return
    with Records(path) as records:
        measure(asked, records)


if __name__ == "__main__":
    main()
