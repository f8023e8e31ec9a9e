"""Train a network from scratch, and evaluate a bundle again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.config import RECIPES, Config, from_run, unless_auto
from amc.deploy.bundle import save_weights, verified
from amc.deploy.result import read_result
from amc.errors import BundleError, ConfigError
from amc.importance import write_ranking
from amc.latency import ConfinedRunner, onnx_metric
from amc.pipeline.opening import open_task
from amc.pipeline.pipeline import use_threads
from amc.pipeline.sparsity import check_sparsity, make_sparse, make_sparsifier
from amc.pipeline.trust import is_own, refuse_plugins, without_download
from amc.runtime.monitor import Monitor, Silent
from amc.task import Objective, Split, Splits, check_training, evaluate, load_data, load_objective, nested
from amc.task.nested import Nested
from amc.task.unlabelled import without_labels
from amc.train import (
    EarlyWeights,
    Hook,
    asked_precision,
    checkpoint_precision,
    fastest_precision,
    make_plan,
    train,
    training_hooks,
)


@dataclass(frozen=True)
class Trained:
    """The file of the trained weights, and their metrics."""

    path: Path
    metric: str
    search: float
    test: float
    ranking: Path | None = None
    """The file with the channels' scores; None if the training did not prepare for pruning."""


def train_network(config: Config, monitor: Monitor | None = None) -> Trained:
    """Train the configuration's network and write its weights to ``config.out``; resumes where it stopped."""
    show = monitor or Silent()
    check_sparsity(config)
    use_threads(config)
    torch.manual_seed(config.seed)
    if config.data.inputs is not None:
        raise ConfigError("amc train needs labels, but --calibration gives inputs only: give --data.")
    task = open_task(config)
    check_training(task)
    if config.finetune.images != "train":
        raise ConfigError("amc train trains on the labels of the training split: leave --recipe none out.")
    path = Path(config.out or f"{Path(config.model.name).stem.replace(':', '-')}.safetensors")
    if path.suffix != ".safetensors" or path.is_dir():
        raise BundleError(f"--out is {path}, but must be a .safetensors file.")
    asked = unless_auto(config.finetune.epochs)
    epochs = 5 * RECIPES[config.finetune.recipe].length * task.splits.epochs if asked is None else asked
    plan = replace(make_plan(config.finetune, task, epochs, config.seed), distillation=0.0)
    checkpoint = path.with_suffix(".checkpoint.pt")
    show.say(f"{task.name}: {task.splits.summary()}")
    show.begin("train")
    precision = asked_precision(config.finetune) or checkpoint_precision(checkpoint)
    plan = replace(plan, precision=precision or fastest_precision(task.model, task, plan, None))
    sparsifier, sparse = make_sparsifier(config, task, plan), make_sparse(config, task.model)
    first: list[Hook] = [hook for hook in (sparsifier, sparse) if hook is not None]  # they are called before the others
    if config.train.keep_early > 0:
        first.append(EarlyWeights(config.train.keep_early, partial(save_weights, path=early_path(path))))
    hooks = [*first, *training_hooks(config.finetune, task.model, task)]
    if sparse:
        show.say(f"{sparse.weights:,} of {sparse.possible:,} weights in matrices and kernels are trained.")
    model = train(task.model, task, plan, None, checkpoint, lambda done, loss: show.progress(done, f"loss {loss:.3f}"),
                  hooks)  # fmt: skip
    ranking = None
    if sparsifier:
        sparsifier.finish(model)
        ranking = path.with_suffix(".ranking.safetensors")
        write_ranking(ranking, sparsifier.scores(model))
    save_weights(model, path)
    checkpoint.unlink(missing_ok=True)
    if config.train.keep_early > 0:
        show.say(f"{early_path(path)}: the weights after {100 * config.train.keep_early:g} % of the training")
    search = evaluate(model, task, task.splits.search)[1]
    return Trained(path, task.objective.name, search, evaluate(model, task, task.splits.test)[1], ranking)


def early_path(path: Path) -> Path:
    """The file of the early weights of a training that writes its weights to ``path``.

    >>> early_path(Path("net.safetensors")).name
    'net.early.safetensors'
    """
    return path.with_suffix(".early.safetensors")


@dataclass(frozen=True)
class Rerun:
    """The metric of a bundle's model.onnx now, and the one that its run recorded."""

    metric: str
    test: float
    recorded: float


def evaluate_bundle(folder: Path, trust: bool = False) -> Rerun:
    """Run the bundle's model.onnx on the test split of its run's data."""
    path = folder / "result.json"
    if not path.is_file():
        raise BundleError(f"{folder} has no result.json: it is not a bundle, or its run has not finished.")
    verified(folder, "model.onnx", "config.yaml", "result.json")
    config = from_run(folder)
    if not trust and not is_own(folder, config):
        refuse_plugins(config, folder)
        config = without_download(config)
    result = read_result(path)
    splits, objective = load_data(config.data), load_objective(config.objective)
    if not splits.labelled:
        return _rerun_without_labels(folder, splits, objective, result)
    split = splits.test
    with ConfinedRunner(folder / "model.onnx") as runner:
        return _rerun(runner, objective, split, result, path)


def _rerun(runner: ConfinedRunner, objective: Objective, split: Split, result: Mapping[str, Any], path: Path) -> Rerun:
    runner.structured(nested.feeds(split.fetch(torch.tensor([0]))[0]))  # an endless loop is found with one sample
    found = onnx_metric(runner, objective, split)
    if result["final"].get("test") is None:
        raise BundleError(f"{path} is damaged: it has no final test score.")
    return Rerun(result["metric"], found, result["final"]["test"])


class _OnFile(nn.Module):
    """A network that a runner computes."""

    def __init__(self, runner: ConfinedRunner) -> None:
        super().__init__()
        self._runner = runner

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Nested:
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        return self._runner.structured(nested.feeds(inputs))


def _rerun_without_labels(folder: Path, splits: Splits, objective: Objective, result: Mapping[str, Any]) -> Rerun:
    """Evaluate with the outputs of original.onnx as targets."""
    verified(folder, "original.onnx")
    with ConfinedRunner(folder / "original.onnx") as original, ConfinedRunner(folder / "model.onnx") as runner:
        own, goal = without_labels("original.onnx", _OnFile(original), splits, torch.device("cpu"), objective)
        return _rerun(runner, goal, own.test, result, folder / "result.json")
