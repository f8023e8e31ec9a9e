"""Preparations, sparse training, schedules and recoveries of the literature, each kind at equal epochs.

::

    python -m benchmarks.literature --parts preparations sparse schedules --seeds 2
    python -m benchmarks.literature --report

On digits and resnet8 unless another network is named. One piece is one network;
`benchmarks/results/literature-NETWORK.jsonl` holds a line per piece, and a recorded piece is not run again. All
accuracies are on the search split; the test split is not read.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc.config import FinetuneConfig
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.build import build_graph
from amc.graph.narrowing import narrowed
from amc.importance import rank
from amc.reconstruction.moments import collect as collect_moments
from amc.reconstruction.moments import readers
from amc.space.budget import Space
from amc.space.sites import Choice
from amc.task import Task, evaluate
from amc.train import (
    DenseNetwork,
    Hook,
    Plan,
    Pruned,
    SparseTraining,
    Step,
    make_plan,
    phases,
    preparations,
    prepared,
    recovered,
    sparse_rule,
    sparse_rules,
    train,
)
from amc.train.recover_scratch import redraw
from benchmarks.bench import RESULTS, Records, arguments, machine, open_stages, rounded

SHARES = (0.5, 0.2)
"""Of the original's MACs."""
DENSITIES = (0.1, 0.05)
STRENGTHS: dict[str, dict[str, Any]] = {
    "bn-l1": {"strength": 0.01}, "group-lasso": {"strength": 5e-4}, "half-norm": {"strength": 5e-4},
    "structured-bayesian": {"lr": 0.1},
}  # fmt: skip
"""Settings that suit a training of few steps, one guess each; the others have their defaults."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-shot": {}, "iterative": {"steps": 3}, "gradual": {"steps": 4}, "layerwise": {"sites": 2},
}  # fmt: skip
RECOVERIES = ("finetune", "rewind-lr", "scratch")


class Bench:
    """The network, its sites under every budget, and how it is trained."""

    def __init__(self, asked: argparse.Namespace) -> None:
        opened = {share: open_stages(asked, share) for share in SHARES}
        graphs = {share: stages.inspect() for share, stages in opened.items()}
        self.spaces: dict[float, Space] = {share: stages.space(graphs[share]) for share, stages in opened.items()}
        self.task: Task = opened[SHARES[0]].record.task
        self.asked = asked

    def uniform(self, share: float) -> Choice:
        """The uniform policy at a share of the MACs."""
        return self.spaces[share].fit(np.ones(len(self.spaces[share].names)))

    def plan(self, epochs: float, seed: int, lr: float) -> Plan:
        """A training of so many epochs by labels."""
        config = FinetuneConfig(lr=lr, batch_size=64)
        return replace(make_plan(config, self.task, epochs, seed), distillation=0.0)

    def fresh(self, seed: int) -> Task:
        """The task with an untrained network."""
        model = copy.deepcopy(self.task.model)
        redraw(model, seed)
        return replace(self.task, model=model)

    def score(self, model: nn.Module) -> float:
        """Accuracy on the search split."""
        return evaluate(model, self.task, self.task.splits.search)[1]


def preparing(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every preparation, and plain training: accuracy whole, and pruned uniformly by its own ranking."""
    for seed in range(bench.asked.seeds):
        for name in ("plain", *preparations()):
            yield f"preparation {name} {seed}", lambda name=name, seed=seed: prepare(bench, name, seed)


def prepare(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """Train with a preparation, then prune uniformly and train again, for a quarter of the epochs."""
    task, plan = bench.fresh(seed), bench.plan(bench.asked.epochs, seed, 0.1)
    graph = build_graph(task.model, task.example)
    hook = None if name == "plain" else prepared(name, STRENGTHS.get(name, {}), DenseNetwork(task, graph), plan)
    model = train(task.model, task, plan, hooks=[hook] if hook else [])
    scores: dict[str, Tensor] = {}
    if hook:
        hook.finish(model)
        scores = dict(hook.scores(model))
    moments = collect_moments(task, readers(graph, model), seed)
    orders = rank("l2-mean", graph, model, moments)
    own = [scores[site.name].argsort(descending=True, stable=True) if site.name in scores else order
           for site, order in zip(graph.sites, orders, strict=True)]  # fmt: skip
    found: dict[str, Any] = {"whole": bench.score(model), "steps": plan.steps}
    for share, space in bench.spaces.items():
        how = EvaluationSettings("loss", reconstruction=Reconstruction(False, None, None, seed))
        evaluator = Evaluator(task, graph, own, moments, how, sites=space.sites)
        pruned = evaluator.pruned(bench.uniform(share))
        found[f"cut {share}"] = bench.score(pruned)
        after = train(pruned, task, bench.plan(bench.asked.epochs / 4, seed, 0.03))
        found[f"trained {share}"] = bench.score(after)
    return found


class Masked(Hook):
    """Keeps weights at 0 that are not there."""

    def __init__(self, model: nn.Module, density: float) -> None:
        """The largest weights of the whole network stay."""
        weights = {name: p.detach().abs() for name, p in model.named_parameters() if p.ndim > 1}
        everything = torch.cat([own.flatten() for own in weights.values()])
        least = everything.sort(descending=True).values[round(density * len(everything)) - 1]
        self._masks = {name: own >= least for name, own in weights.items()}
        self.apply(model)

    def apply(self, model: nn.Module) -> None:
        """Set what is not there to 0."""
        with torch.no_grad():
            for name, mask in self._masks.items():
                model.get_parameter(name).mul_(mask)

    def after_step(self, step: Step) -> None:
        self.apply(step.model)


def sparse(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every rule at every density; dense; a random mask that stays; magnitude pruning after half of the epochs."""
    for seed in range(bench.asked.seeds):
        for density in DENSITIES:
            for name in ("static", "magnitude", *sparse_rules()):
                yield (f"sparse {name} {density} {seed}",
                       lambda name=name, density=density, seed=seed: sparsely(bench, name, density, seed))  # fmt: skip


def sparsely(bench: Bench, name: str, density: float, seed: int) -> dict[str, Any]:
    """Train a sparse network. Magnitude pruning trains a dense one for half of the epochs, then a sparse one."""
    task, epochs = bench.fresh(seed), bench.asked.epochs
    if name == "magnitude":
        model = train(task.model, task, bench.plan(epochs / 2, seed, 0.1))
        hook: Hook = Masked(model, density)
        train(model, task, bench.plan(epochs / 2, seed + 1, 0.1), hooks=[hook])
    else:
        rule = sparse_rule("set", {"changes": 0}) if name == "static" else sparse_rule(name, {})
        hook = SparseTraining(task.model, rule, density, "erdos-renyi-kernel", seed)
        model = train(task.model, task, bench.plan(epochs, seed, 0.1), hooks=[hook])
    weights = torch.cat([p.flatten() for p in model.parameters() if p.ndim > 1])
    return {"accuracy": bench.score(model), "density": float((weights != 0).float().mean())}


def scheduled(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every schedule with fine-tuning, and every recovery in one shot, at equal epochs."""
    pairs = [(schedule, "finetune") for schedule in SCHEDULES] + [("one-shot", recovery) for recovery in RECOVERIES[1:]]
    for seed in range(bench.asked.seeds):
        for share in SHARES:
            for schedule, recovery in pairs:
                yield (f"schedule {schedule} {recovery} {share} {seed}",
                       lambda a=schedule, b=recovery, c=share, d=seed: recover(bench, a, b, c, d))  # fmt: skip


def recover(bench: Bench, schedule: str, recovery: str, share: float, seed: int) -> dict[str, Any]:
    """Prune the trained network uniformly by a schedule, re-solved, and recover it. No soft targets."""
    task, space, chosen = bench.task, bench.spaces[share], bench.uniform(share)
    graph = build_graph(task.model, task.example)
    moments = collect_moments(task, readers(graph, task.model), 0)
    how = EvaluationSettings("loss", reconstruction=Reconstruction(True, None, None, 0))
    evaluator = Evaluator(task, graph, rank("obs", graph, task.model, moments), moments, how, sites=space.sites)
    path = phases(schedule, SCHEDULES[schedule], space, chosen, bench.asked.epochs)
    model, had = evaluator.pruned(path[0].choice), evaluator.kept(path[0].choice)
    for number, phase in enumerate(path):
        kept = evaluator.kept(phase.choice)
        if number > 0:
            model, had = narrowed(model, graph.layers, had, kept), kept
        plan = bench.plan(phase.epochs, seed + 7919 * number, 0.03)
        start = recovered(recovery, {}, Pruned(model, task.model, copy.deepcopy), plan)
        model = train(start.model, task, start.plan, hooks=start.hooks)
    return {"accuracy": bench.score(model), "phases": len(path)}


PARTS = {"preparations": preparing, "sparse": sparse, "schedules": scheduled}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--report", action="store_true")
    asked = parser.parse_args()
    path = RESULTS / f"literature-{asked.model}.jsonl"
    if asked.report:
        print(report(Records.read(path).all()))
        return
    bench = Bench(asked)
    with Records(path) as records:
        for part in asked.parts:
            for piece, work in PARTS[part](bench):
                if records(piece) is None:
                    start = time.process_time()
                    found = work()
                    seconds = time.process_time() - start
                    record = records.add(piece, **found, epochs=asked.epochs, seconds=seconds, machine=machine())
                    print(rounded(record), flush=True)


def report(rows: list[dict[str, Any]]) -> str:
    """The tables of what is recorded."""
    return "\n\n".join(filter(None, (_preparations(rows), _sparse(rows), _schedules(rows))))


def _preparations(rows: list[dict[str, Any]]) -> str:
    columns = ["whole", *(f"{kind} {share}" for share in SHARES for kind in ("cut", "trained"))]
    return _table(rows, "preparation", 1, ["preparation", "n", *columns], columns)


def _sparse(rows: list[dict[str, Any]]) -> str:
    return _table(rows, "sparse", 2, ["rule, density", "n", "accuracy"], ["accuracy"])


def _schedules(rows: list[dict[str, Any]]) -> str:
    return _table(rows, "schedule", 3, ["schedule, recovery, share of MACs", "n", "accuracy"], ["accuracy"])


def _table(rows: list[dict[str, Any]], part: str, words: int, heads: list[str], columns: list[str]) -> str:
    """Mean ± standard deviation over the seeds, in percent; a row for every name of so many words."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kind, *names = row["piece"].split(" ")
        if kind == part:
            groups.setdefault(", ".join(names[:words]), []).append(row)
    if not groups:
        return ""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, own in groups.items():
        cells = [_spread([100 * row[column] for row in own]) for column in columns]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
