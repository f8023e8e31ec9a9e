"""Train a run's pruned networks with the configured recovery."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from amc.evaluation.evaluator import Evaluator
from amc.graph.narrowing import narrowed
from amc.graph.sites import Graph
from amc.pipeline.record import Record
from amc.space.sites import Choice
from amc.train import HeldSettings, Phase, Pruned, held, make_plan, recovered, train, training_hooks, try_recovery

PHASE_SEEDS = 7919
"""Difference of the seeds of two consecutive phases, so that they see the samples in different orders."""
LOSSES = 20
"""How often the loss is recorded in one training."""


class LossReport:
    """Shows the progress of a training, and records its loss at regular steps."""

    def __init__(self, record: Record, before: float, share: float, kind: str = "training") -> None:
        """The training is a ``share`` of all training and starts at the share ``before``. ``kind``: that of records."""
        self._record, self._before, self._share, self._recorded = record, before, share, 0
        self._kind = kind

    def __call__(self, done: float, loss: float) -> None:
        """``done`` is the share of this training that is done, ``loss`` its running loss."""
        overall = self._before + self._share * done
        self._record.step(overall, f"loss {loss:.3f}")
        if int(LOSSES * done) > self._recorded:
            self._recorded = int(LOSSES * done)
            self._record.journal.append(self._kind, done=round(overall, 4), loss=loss)


def try_own_recovery(record: Record) -> None:
    """Check before the search that the recovery works for the run's network. Raises AmcError."""
    finetune, model = record.config.finetune, record.task.model
    if finetune.recover != "finetune":
        plan = make_plan(finetune, record.training_task, record.epochs, record.config.seed)
        try_recovery(finetune.recover, finetune.recover_options, model, plan)


def recover(
    record: Record,
    evaluator: Evaluator,
    choice: Choice,
    model: nn.Module,
    epochs: float,
    phase: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> nn.Module:
    """Train ``model``, pruned to ``choice``, for this many epochs; returns the trained network.

    The training continues from ``checkpoint`` if that exists. Without a checkpoint it is a trial, during which the
    search split is not read. ``progress``: see `amc.train.train`.
    """
    holding = held(evaluator.recorded(choice), evaluator.operators)
    if epochs > 0:
        pruned = Pruned(model, record.task.model, lambda network: evaluator.cut(network, choice))
        return _trained(record, pruned, epochs, phase, checkpoint, progress, holding)
    for hook in holding:
        hook.apply(model)
    return model


def _trained(
    record: Record,
    pruned: Pruned,
    epochs: float,
    phase: int,
    checkpoint: Path | None,
    progress: Callable[[float, float], None] | None,
    holding: Sequence[HeldSettings] = (),
) -> nn.Module:
    """Train a network with the run's recovery and recipe; the hooks ``holding`` enforce its settings."""
    finetune, task = record.config.finetune, record.training_task
    plan = record.plan(epochs, pruned.model)
    plan = replace(plan, seed=plan.seed + PHASE_SEEDS * phase)
    start = recovered(finetune.recover, finetune.recover_options, pruned, plan)
    for hook in holding:
        hook.apply(start.model)
    asked = training_hooks(finetune, start.model, task, checked=checkpoint is not None)
    # settings are enforced before and after the hooks that keep averaged or best weights
    hooks = [*start.hooks, *holding, *asked, *holding] if asked else [*start.hooks, *holding]
    return train(start.model, task, start.plan, task.model, checkpoint, progress, hooks)


def train_original(record: Record, phases: Sequence[Phase]) -> nn.Module:
    """Train the original further, as long as the pruned network and with the same recipe, with its own checkpoints."""
    model = copy.deepcopy(record.task.model)
    for number, phase in enumerate(phases):
        pruned = Pruned(model, record.task.model, copy.deepcopy)
        report = LossReport(record, number / len(phases), 1 / len(phases), "original-training")
        checkpoint = record.folder / f"checkpoint.original.{number + 1}.pt"
        model = _trained(record, pruned, phase.epochs, number, checkpoint, report)
    return model


def recover_in_phases(record: Record, evaluator: Evaluator, phases: Sequence[Phase], graph: Graph) -> nn.Module:
    """Prune and train, phase by phase. Each phase has its own checkpoint, so a resumed run repeats none of them."""
    first = phases[0].choice
    model, had = evaluator.pruned(first), evaluator.kept(first)
    for number, phase in enumerate(phases):
        kept = evaluator.kept(phase.choice)
        if number > 0:
            model, had = narrowed(model, graph.layers, had, kept), kept
        name = "checkpoint.pt" if number + 1 == len(phases) else f"checkpoint.{number + 1}.pt"
        report = LossReport(record, number / len(phases), 1 / len(phases))
        model = recover(record, evaluator, phase.choice, model, phase.epochs, number, record.folder / name, report)
    return model


def drop_checkpoints(record: Record) -> None:
    """Delete the checkpoints of a network that is finished or no longer needed."""
    for path in record.folder.glob("checkpoint*.pt"):
        path.unlink(missing_ok=True)
