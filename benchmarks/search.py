"""Compare searchers on one evaluator: their best policies before training, and after the same short training.

    python -m benchmarks.search --model resnet20 --weights W --data imagefolder:PATH --evaluations 60 --seeds 2
    python -m benchmarks.search ... --baselines --train 250     train the best policies and Torch-Pruning networks
    python -m benchmarks.search ... --untrained                 score the best policies on the test split, untrained
    python -m benchmarks.search --report                        print tables and draw plots of all records

A piece is one search or one training. `benchmarks/results/search-NETWORK-BUDGET.jsonl` holds one line per piece
(another number of images and other widths are part of the name). A recorded piece is not run again. Searches score on
the search split. Each result is scored once on the test split.
Seconds are CPU time of the process on one thread, because a busy machine affects that less than wall-clock time.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.evaluation.reward import loss as loss_reward
from amc.graph.trace import trace
from amc.search import load_searcher
from amc.task import batches, evaluate
from amc.task.splits import sample
from amc.train import make_plan, train
from benchmarks.bench import IMAGES, RESULTS, Bench, Records, arguments, machine, open_bench, rounded

ONCE = ("uniform", "allocate", "threshold")
"""Searchers that propose one policy."""
PLOTS = RESULTS.parents[1] / "docs" / "benchmarks"
TORCH_PRUNING = (("magnitude", False), ("magnitude", True), ("taylor", False), ("taylor", True))


def searched(bench: Bench, searcher: str, evaluations: int, seed: int) -> dict[str, Any]:
    """One search: the best loss and CPU seconds after every evaluation, and the best policy by full evaluation."""
    trail: list[list[float]] = []
    start, best = time.process_time(), np.inf

    def observe(problem: Problem, evaluation: Evaluation) -> None:
        nonlocal best
        if not evaluation.rejected:
            best = min(best, evaluation.loss)
        trail.append([round(time.process_time() - start, 3), round(best, 5), evaluation.share])

    problem = Problem(
        bench.space, [site.features for site in bench.graph.sites], bench.evaluator, loss_reward, observer=observe
    )
    load_searcher(searcher)(problem, evaluations, seed)
    best = bench.evaluator.score(problem.best(1)[0].choice).loss
    found = [(bench.evaluator.refined_score(e.choice), e.choice) for e in problem.best(5)]
    score, choice = min(found, key=lambda pair: pair[0].loss)
    evaluating = sum(e.seconds for e in problem.evaluations)
    return {
        "searcher": searcher, "seed": seed, "trail": trail, "best": best, "choice": list(choice), "loss": score.loss,
        "metric": score.metric, "macs": bench.space.costs(choice)["macs"], "evaluating": round(evaluating, 2),
    }  # fmt: skip


def _best(row: Mapping[str, Any]) -> float:
    """The fast score of the best policy on all images. During the search it was estimated from some of them."""
    return float(row.get("best", row["trail"][-1][1]))


def trained(bench: Bench, model: nn.Module, steps: int, seed: int) -> dict[str, Any]:
    """Accuracy before and after a short training on the search split, and after it on the test split."""
    before = evaluate(model, bench.task, bench.task.splits.search)[1]
    plan = make_plan(bench.stages.record.config.finetune, bench.task, 1.0, seed)
    train(model, bench.task, replace(plan, steps=steps, precision="bfloat16"), bench.task.model)
    after, test = (evaluate(model, bench.task, s)[1] for s in (bench.task.splits.search, bench.task.splits.test))
    macs = trace(model, bench.task.example).macs / bench.graph.trace.macs
    return {"before": before, "after": after, "test": test, "macs": macs, "steps": steps, "seed": seed}


def torch_pruning(bench: Bench, importance: str, global_pruning: bool, flops: float) -> nn.Module:
    """The network of Torch-Pruning 1.6 at the smallest pruning ratio that meets the budget, found by bisection."""
    low, high = 0.0, 0.9
    best = None
    for _ in range(9):
        ratio = (low + high) / 2
        model = _pruned(bench, importance, global_pruning, ratio)
        if trace(model, bench.task.example).macs <= flops * bench.graph.trace.macs:
            best, high = model, ratio
        else:
            low = ratio
    assert best is not None
    return best


def _pruned(bench: Bench, importance: str, global_pruning: bool, ratio: float) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(bench.task.model).requires_grad_(True)
    criterion = tp.importance.TaylorImportance() if importance == "taylor" else tp.importance.MagnitudeImportance(p=2)
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MetaPruner(
            model, bench.task.example.clone(), importance=criterion, global_pruning=global_pruning, pruning_ratio=ratio,
            max_pruning_ratio=0.9, ignored_layers=ignored,
        )  # fmt: skip
        if importance == "taylor":
            images, labels = next(batches(sample(bench.task.splits.calibration, 512), 512))
            model.zero_grad()
            bench.task.objective.loss(model(images), labels).mean().backward()
        pruner.step()
    return model.eval()


def by_searcher(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Searches grouped by searcher and number of evaluations: one record per seed."""
    searches: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if "trail" in row:
            searches.setdefault((row["searcher"], len(row["trail"])), []).append(row)
    return searches


def plot(records: Records, path: Path) -> None:
    """Plot the best loss so far against evaluations and CPU seconds. One line per search; seeds share a colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    searches = by_searcher(records.all())
    for number, ((name, count), found) in enumerate(sorted(searches.items())):
        for seed, row in enumerate(found):
            trail = np.array(row["trail"])
            look = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10], "linewidth": 1.2}
            label = None if seed else f"{name} ({count})"
            if len(trail) == 1:
                axes[0].scatter([1], trail[:, 1], s=14, color=look["color"], label=label)
                axes[1].scatter(trail[:, 0], trail[:, 1], s=14, color=look["color"])
            else:
                axes[0].plot(np.arange(1, len(trail) + 1), trail[:, 1], label=label, **look)
                axes[1].plot(trail[:, 0], trail[:, 1], **look)
    for axis, name in zip(axes, ("evaluations", "CPU seconds"), strict=True):
        axis.set(xlabel=name, xscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("best score before training")
    figure.legend(loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def report(records: Records) -> str:
    """Markdown tables for one network and budget."""
    about, rows = records("about") or {}, records.all()
    lines = [f"{about.get('machine')}; {about.get('images')} images of the search split, one thread.", ""]
    lines += [
        "| searcher | seeds | best score | accuracy, full evaluation | test split | evaluations | CPU seconds |"
        " forward passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    searches = by_searcher(rows)
    for (name, count), found in sorted(searches.items(), key=lambda item: np.mean([_best(r) for r in item[1]])):
        losses = [_best(r) for r in found]
        metrics = [100 * r["metric"] for r in found]
        seconds = np.mean([r["trail"][-1][0] for r in found])
        shares = np.mean([sum(t[2] for t in r["trail"]) for r in found])
        tests = [100 * r["untrained"] for f in found if (r := records(f"untrained {f['piece']}"))]
        test = f"{np.mean(tests):.2f} ± {np.std(tests):.2f}" if len(tests) == len(found) else ""
        lines.append(
            f"| {name} | {len(found)} | {np.mean(losses):.3f} ± {np.std(losses):.3f} | {np.mean(metrics):.2f} ± "
            f"{np.std(metrics):.2f} | {test} | {count} | {seconds:.0f} | {shares:.0f} |"
        )
    if original := records("untrained original"):
        lines += ["", f"The original's accuracy on the test split is {100 * original['untrained']:.2f} %."]
    finished = [r for r in rows if "after" in r]
    if finished:
        lines += [
            "",
            "| network, after the same training | MACs | before training | search split | test split | steps |",
            "|---|---|---|---|---|---|",
        ]
        for row in sorted(finished, key=lambda r: -r["test"]):
            lines.append(
                f"| {row['piece'].removeprefix('train ')} | {row['macs']:.3f} | {100 * row['before']:.2f} | "
                f"{100 * row['after']:.2f} | {100 * row['test']:.2f} | {row['steps']} |"
            )
    return "\n".join(lines) + "\n"


def _searches(asked: argparse.Namespace, bench: Bench, records: Records) -> None:
    for seed in range(asked.seeds):
        for name in asked.searchers.split(","):
            count = 1 if name in ONCE else asked.evaluations
            piece = f"{name} {seed}, {count} evaluations"
            if records(piece) or (name in ONCE and seed):
                continue
            done = records.add(piece, **searched(bench, name, count, seed))
            print(rounded({k: v for k, v in done.items() if k != "trail"}), flush=True)


def _trainings(asked: argparse.Namespace, bench: Bench, records: Records) -> None:
    for row in records.all():
        piece = f"train {row['piece']}"
        if "trail" in row and row["searcher"] in asked.searchers.split(",") and not records(piece):
            model = bench.evaluator.pruned(tuple(row["choice"]))
            macs = row["macs"] / bench.graph.trace.macs  # torch keeps one channel of a removed branch
            print(rounded(records.add(piece, **{**trained(bench, model, asked.train, 0), "macs": macs})), flush=True)
    for importance, everywhere in TORCH_PRUNING if asked.baselines else ():
        piece = f"train Torch-Pruning {importance} {'global' if everywhere else 'local'}"
        if not records(piece):
            model = torch_pruning(bench, importance, everywhere, asked.flops)
            print(rounded(records.add(piece, **trained(bench, model, asked.train, 0))), flush=True)


def _untrained(asked: argparse.Namespace, bench: Bench, records: Records) -> None:
    for row in records.all():
        piece = f"untrained {row['piece']}"
        if "trail" in row and row["searcher"] in asked.searchers.split(",") and not records(piece):
            model = bench.evaluator.pruned(tuple(row["choice"]))
            found = evaluate(model, bench.task, bench.task.splits.test)[1]
            print(rounded(records.add(piece, untrained=found)), flush=True)
    if not records("untrained original"):
        found = evaluate(bench.task.model, bench.task, bench.task.splits.test)[1]
        print(rounded(records.add("untrained original", untrained=found)), flush=True)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--searchers", default="hybrid,tpe,spdy,evolution,annealing,random,amc,uniform,allocate")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train", type=int, default=0, help="training steps for the best policy of each searcher")
    parser.add_argument("--baselines", action="store_true", help="also train networks pruned by Torch-Pruning")
    parser.add_argument(
        "--untrained", action="store_true", help="score the best policies on the test split without training"
    )
    parser.add_argument("--min-keep", default="auto", help="as for amc search; 0 allows removed branches")
    parser.add_argument("--channel-step", default="auto", help="as for amc search")
    parser.add_argument("--search-objective", choices=["loss", "logit_mse"], default="loss", help="as for amc search")
    parser.add_argument("--report", action="store_true", help="print tables and draw plots of all records")
    asked = parser.parse_args()
    if asked.report:
        for path in sorted(RESULTS.glob("search-*.jsonl")):
            records = Records.read(path)
            print(f"### {path.stem}\n\n{report(records)}")
            plot(records, PLOTS / f"{path.stem}.png")
        return
    images = "" if asked.search_images == IMAGES else f"-{asked.search_images}-images"
    widths = {"min_keep": asked.min_keep, "channel_step": asked.channel_step}
    usual = all(parser.get_default(name) == value for name, value in widths.items())
    others = "" if usual else f"-keep-{asked.min_keep}-step-{asked.channel_step}"
    others += "" if asked.search_objective == "loss" else "-by-distance"
    with Records(RESULTS / f"search-{asked.model}-{asked.flops}{images}{others}.jsonl") as records:
        if not records("about"):
            records.add("about", machine=machine(), images=asked.search_images)
        bench = open_bench(asked, asked.flops, objective=asked.search_objective, **widths)
        _searches(asked, bench, records)
        if asked.untrained:
            _untrained(asked, bench, records)
        if asked.train:
            _trainings(asked, bench, records)
        print(report(records))


if __name__ == "__main__":
    main()
