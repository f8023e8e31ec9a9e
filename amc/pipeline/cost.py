"""An estimate of the time for a run's training, made before the run starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from amc.pipeline.choosing import rungs
from amc.pipeline.record import Record
from amc.reports import human
from amc.train import asked_precision, make_plan, step_seconds

SAMPLES = 16
"""Samples in a timed step. The time of a whole step is extrapolated in proportion to its samples."""
TIMED = 3


@dataclass(frozen=True)
class TrainingCost:
    """The steps of a run's training, and their estimated time.

    >>> str(TrainingCost("standard", 100, 30, 100, 0.5))
    'recipe standard: 100 training steps, 30 of trials and 100 of the original, about 1 min 55 s (0.5 s a step)'
    """

    recipe: str
    final: int
    trials: int
    original: int
    seconds_per_step: float
    """Time per step of the unpruned network, on the machine as it is now. Pruned networks take less."""

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return self.seconds_per_step * (self.final + self.trials + self.original)

    def __str__(self) -> str:
        others = [f"{self.trials:,} of trials"] if self.trials else []
        others += [f"{self.original:,} of the original"] if self.original else []
        steps = f"{self.final:,} training step{'' if self.final == 1 else 's'}"
        steps += "".join(f", {part}" for part in others[:-1])
        steps += f"{' and' if len(others) > 1 else ','} {others[-1]}" if others else ""
        return (f"recipe {self.recipe}: {steps}, about {human.seconds(self.seconds)} "
                f"({self.seconds_per_step:.2g} s a step)")  # fmt: skip


def training_cost(record: Record) -> TrainingCost:
    """Estimate the cost of the run's training on this machine from a few timed steps with few samples."""
    finetune, task = record.config.finetune, record.training_task
    plan = make_plan(finetune, task, record.epochs, record.config.seed)
    trials = rungs(finetune.candidates, finetune.trial_share, finetune.halving) if finetune.candidates > 1 else []
    few = min(SAMPLES, plan.batch_size)
    timed = replace(plan, steps=TIMED, batch_size=few, precision=asked_precision(finetune) or "float32")
    seconds = record.once("training-cost", lambda: step_seconds(task.model, task, timed, task.model))
    per_trial = (count * math.ceil(share * plan.steps) for count, share in trials)
    original = plan.steps if record.trains_original else 0
    return TrainingCost(finetune.recipe, plan.steps, sum(per_trial), original, seconds * plan.batch_size / few)
