"""The training of a run's pruned networks, by the recovery that its configuration names."""

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
"""By so much the seeds of two phases of a schedule differ: they see their samples in another order."""
LOSSES = 20
"""How often a training's loss is recorded."""


class LossReport:
    """Shows how far a training is, and journals its loss now and then."""

    def __init__(self, record: Record, before: float, share: float, kind: str = "training") -> None:
        """The training is a ``share`` of all training, of which the share ``before`` is done. ``kind``: of records."""
        self._record, self._before, self._share, self._told = record, before, share, 0
        self._kind = kind

    def __call__(self, done: float, loss: float) -> None:
        """So much of this training is done, with such a running loss."""
        overall = self._before + self._share * done
        self._record.step(overall, f"loss {loss:.3f}")
        if int(LOSSES * done) > self._told:
            self._told = int(LOSSES * done)
            self._record.journal.append(self._kind, done=round(overall, 4), loss=loss)


def try_own_recovery(record: Record) -> None:
    """See that the run's recovery can be had of its network, before anything is spent. Raises AmcError."""
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
    """Train ``model``, pruned to ``choice``, for so many epochs, and give what has become of it.

    The training goes on from ``checkpoint`` where there is one; one without a checkpoint is a trial, along which the
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
    """Train a network by the run's recovery and recipe, within the settings that ``holding`` keeps it to."""
    finetune, task = record.config.finetune, record.training_task
    plan = record.plan(epochs, pruned.model)
    plan = replace(plan, seed=plan.seed + PHASE_SEEDS * phase)
    start = recovered(finetune.recover, finetune.recover_options, pruned, plan)
    for hook in holding:
        hook.apply(start.model)
    asked = training_hooks(finetune, start.model, task, checked=checkpoint is not None)
    # what holds the settings comes before what keeps weights, and again after it
    hooks = [*start.hooks, *holding, *asked, *holding] if asked else [*start.hooks, *holding]
    return train(start.model, task, start.plan, task.model, checkpoint, progress, hooks)


def train_original(record: Record, phases: Sequence[Phase]) -> nn.Module:
    """The original, trained on as the pruned network was: as long, by the same recipe, from checkpoints of its own."""
    model = copy.deepcopy(record.task.model)
    for number, phase in enumerate(phases):
        pruned = Pruned(model, record.task.model, copy.deepcopy)
        report = LossReport(record, number / len(phases), 1 / len(phases), "original-training")
        checkpoint = record.folder / f"checkpoint.original.{number + 1}.pt"
        model = _trained(record, pruned, phase.epochs, number, checkpoint, report)
    return model


def recover_in_phases(record: Record, evaluator: Evaluator, phases: Sequence[Phase], graph: Graph) -> nn.Module:
    """Prune and train, phase by phase. Every phase has a checkpoint, so that none is trained again."""
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
    """Forget the trainings of a network that is finished, or not wanted."""
    for path in record.folder.glob("checkpoint*.pt"):
        path.unlink(missing_ok=True)
