"""The training of a run's pruned networks, by the recovery that its configuration names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from amc.evaluation.evaluator import Evaluator
from amc.graph.narrowing import narrowed
from amc.graph.sites import Graph
from amc.pipeline.record import Record
from amc.space.sites import Choice
from amc.train import Phase, Pruned, held, make_plan, recovered, train, try_recovery

PHASE_SEEDS = 7919
"""By so much the seeds of two phases of a schedule differ: they see their samples in another order."""
LOSSES = 20
"""How often a training's loss is recorded."""


class LossReport:
    """Shows how far a training is, and journals its loss now and then."""

    def __init__(self, record: Record, before: float, share: float) -> None:
        """The training is a ``share`` of all training, of which the share ``before`` is done."""
        self._record, self._before, self._share, self._told = record, before, share, 0

    def __call__(self, done: float, loss: float) -> None:
        """So much of this training is done, with such a running loss."""
        overall = self._before + self._share * done
        self._record.step(overall, f"loss {loss:.3f}")
        if int(LOSSES * done) > self._told:
            self._told = int(LOSSES * done)
            self._record.journal.append("training", done=round(overall, 4), loss=loss)


def try_own_recovery(record: Record) -> None:
    """See that the run's recovery can be had of its network, before anything is spent. Raises AmcError."""
    finetune, model = record.config.finetune, record.task.model
    if finetune.recover != "finetune":
        plan = make_plan(finetune, record.task, record.epochs, record.config.seed)
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

    The training goes on from ``checkpoint`` where there is one. ``progress``: see `amc.train.train`.
    """
    holding = held(evaluator.recorded(choice), evaluator.operators)
    if epochs > 0:
        plan, finetune = record.plan(epochs, model), record.config.finetune
        plan = replace(plan, seed=plan.seed + PHASE_SEEDS * phase)
        pruned = Pruned(model, record.task.model, lambda network: evaluator.cut(network, choice))
        start = recovered(finetune.recover, finetune.recover_options, pruned, plan)
        for hook in holding:
            hook.apply(start.model)
        hooks = [*start.hooks, *holding]
        return train(start.model, record.task, start.plan, record.task.model, checkpoint, progress, hooks)
    for hook in holding:
        hook.apply(model)
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
