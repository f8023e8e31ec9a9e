"""Compare recipes of training on one pruned network, with the original trained on in the same way.

::

    amc search --flops 0.5 --no-finetune ... --out RUN      the pruned network, before any training
    python -m benchmarks.recipes --run RUN --recipes quick standard none --seeds 0 1 [--train-images 4000]
    python -m benchmarks.recipes --run RUN --table          the table of what is recorded

``--set NAME=VALUE`` changes a setting of all recipes that are named (as ``ema_decay=0.99``). One piece is one training;
`benchmarks/results/recipes-NETWORK.jsonl` holds a line per piece, and a recorded piece is not run again. An
interrupted piece goes on from its checkpoint in RUN. The test split is read once per trained network.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import yaml

from amc.config import RECIPES, Config, from_run, unless_auto
from amc.deploy import bundle
from amc.pipeline.opening import open_task
from amc.task import Task, evaluate
from amc.task.splits import sample
from amc.train import asked_precision, make_plan, train, training_hooks, training_task
from benchmarks.bench import RESULTS, Records, machine, rounded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run that was not trained")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--kinds", nargs="+", choices=("pruned", "original"), default=("pruned", "original"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--train-images", type=int, help="train on so many images of the training split [all]")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    config = from_run(asked.run)
    path = RESULTS / f"recipes-{config.model.name}.jsonl"
    if asked.table:
        print(table(Records.read(path).all()))
        return
    task = open_task(config)
    changes = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in asked.set)}
    with Records(path) as records:
        for seed in asked.seeds:
            for recipe in asked.recipes:
                for kind in asked.kinds:
                    piece = json.dumps([kind, recipe, seed, asked.train_images, changes])
                    compared = kind == "pruned" or config.finetune.replace(recipe=recipe).train_original
                    if compared and records(piece) is None:
                        own = trained_by(config, recipe, changes)
                        found = measured(asked, own, task, kind, seed)
                        record = {"network": kind, "recipe": recipe, "changes": changes, "seed": seed, **found}
                        print(rounded(records.add(piece, **record, machine=machine())), flush=True)


def trained_by(config: Config, recipe: str, changes: dict[str, Any]) -> Config:
    """The configuration with another recipe, with ``changes`` to it."""
    finetune = config.finetune.replace(recipe=recipe, **{"epochs": "auto", **changes})
    return config.replace(finetune=finetune)


def measured(asked: argparse.Namespace, config: Config, task: Task, kind: str, seed: int) -> dict[str, Any]:
    """Train the pruned network, or the original, and score it. Accuracies are in [0, 1]."""
    start = time.monotonic()
    if asked.train_images:
        task = replace(task, splits=replace(task.splits, train=sample(task.splits.train, asked.train_images)))
    model = bundle.load(asked.run, task.model, task.example) if kind == "pruned" else copy.deepcopy(task.model)
    before = evaluate(model, task, task.splits.search)[1]
    finetune = config.finetune
    epochs = unless_auto(finetune.epochs)
    epochs = RECIPES[finetune.recipe].length * task.splits.epochs if epochs is None else epochs
    own = training_task(finetune, task)
    plan = replace(make_plan(finetune, own, epochs, seed), precision=asked_precision(finetune) or "channels_last")
    hooks = training_hooks(finetune, model, task)
    name = f"recipe-{kind}-{finetune.recipe}-{seed}.pt"
    network = train(model, own, plan, task.model, asked.run / name, Progress(), hooks)
    scores = {part: evaluate(network, task, getattr(task.splits, part))[1] for part in ("search", "test")}
    (asked.run / name).unlink(missing_ok=True)
    images = len(own.splits.train)
    return {"images": images, "epochs": epochs, "steps": plan.steps, "before": before, **scores,
            "given": given_test(asked.run), "seconds": time.monotonic() - start}  # fmt: skip


def given_test(run: Path) -> float:
    """The original's metric on the test split, as its run has read it."""
    return float(json.loads((run / "result.json").read_text())["original"]["test"])


class Progress:
    """Prints how far a training is, every 50 steps."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, done: float, loss: float) -> None:
        self._calls += 1
        if self._calls % 50 == 0:
            print(f"{100 * done:.0f} % loss {loss:.3f}", flush=True)


def table(records: list[dict[str, Any]]) -> str:
    """Test accuracy by recipe, in percent, and differences in points: mean and spread over the seeds."""
    heads = ("recipe", "images", "epochs", "steps", "n", "pruned", "against given", "original trained on",
             "against trained on", "minutes")  # fmt: skip
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *_rows(records)])


def _rows(records: list[dict[str, Any]]) -> Iterator[str]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        label = " ".join([record["recipe"], *(f"{k}={v}" for k, v in record["changes"].items())])
        groups.setdefault(f"{label}|{record['images']}|{record['epochs']:g}|{record['steps']}", []).append(record)
    for key, group in groups.items():
        pruned = {r["seed"]: r for r in group if r["network"] == "pruned"}
        original = {r["seed"]: r["test"] for r in group if r["network"] == "original"}
        given = [r["test"] - r["given"] for r in pruned.values()]
        paired = [pruned[seed]["test"] - test for seed, test in original.items() if seed in pruned]
        minutes = mean(r["seconds"] for r in pruned.values()) / 60 if pruned else 0
        cells = [*key.split("|"), str(len(pruned)), _spread([r["test"] for r in pruned.values()]), _spread(given, "+"),
                 _spread(list(original.values())), _spread(paired, "+"), f"{minutes:.1f}"]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return ""
    percent = [100 * value for value in values]
    return f"{mean(percent):{sign}.2f}" + (f" ± {stdev(percent):.2f}" if len(percent) > 1 else "")


if __name__ == "__main__":
    main()
