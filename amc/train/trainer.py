"""Training: of a network from scratch, and of a pruned one with the original as its teacher.

Every step draws its samples, augmentation and all that hooks draw from (seed, step) alone, so training goes on from a
checkpoint exactly as if it had not stopped. What is done otherwise than to follow the gradient of the loss is a `Hook`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ModelError
from amc.runtime.onednn import SafeGradients
from amc.task import Task, nested
from amc.task.checks import copied
from amc.task.nested import Nested
from amc.train.checkpoint import restore, save
from amc.train.distillation import soft_targets, uniform_targets
from amc.train.hooks import Hook, Step
from amc.train.plan import Plan

CHECKPOINT_SECONDS = 20.0
_TINY = 1e-30  # weights this small are noise, and denormals make inference many times slower


def train(
    model: nn.Module,
    task: Task,
    plan: Plan,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float, float], None] | None = None,
    hooks: Sequence[Hook] = (),
) -> nn.Module:
    """Train ``model`` in place and leave it in evaluation mode, contiguous, in float32.

    Hooks have the last word (`Hook.after_training`). ``progress`` is told the share of steps done and the running loss.
    Goes on from ``checkpoint`` where it is of the same training. Raises ModelError when the loss is no longer finite.
    """
    trainer = Trainer(model, task, plan, teacher, hooks)
    start = restore(checkpoint, model, trainer.optimizer, plan, hooks) if checkpoint else 0
    saved, running = time.monotonic(), 0.0
    for step in range(start, plan.steps):
        loss = trainer.step(step)
        if not math.isfinite(loss):
            raise ModelError(f"training diverged in step {step} (loss {loss}): lower --lr (now {plan.lr}).")
        running = loss if step == start else 0.95 * running + 0.05 * loss
        if progress:
            progress((step + 1) / plan.steps, running)
        if checkpoint and (time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == plan.steps):
            save(checkpoint, step + 1, model, trainer.optimizer, plan, hooks)
            saved = time.monotonic()
    model.to(memory_format=torch.contiguous_format).eval()
    for hook in hooks:
        hook.after_training(model)
    _flush_tiny(model)
    return model


def fastest_precision(model: nn.Module, task: Task, plan: Plan, teacher: nn.Module | None) -> str:
    """The precision whose training step takes least time here; float32 unless another saves a tenth."""
    seconds = {}
    for precision in ("float32", "channels_last", "bfloat16"):
        tried = replace(plan, steps=4, lr=1e-9, weight_decay=0.0, precision=precision)
        try:
            seconds[precision] = step_seconds(model, task, tried, teacher)
        except RuntimeError:  # some operator has no kernel for another precision or memory layout
            if precision == "float32":
                raise
    best = min(seconds, key=lambda p: seconds[p])
    return best if seconds[best] < 0.9 * seconds["float32"] else "float32"


def step_seconds(model: nn.Module, task: Task, plan: Plan, teacher: nn.Module | None) -> float:
    """What a step of the plan takes at least, the first one left out. All of its steps are taken, on a copy."""
    trainer, times = Trainer(copied(model), task, plan, teacher), []
    for step in range(plan.steps):
        start = time.perf_counter()
        trainer.step(step)  # gives the loss, and so waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])


class Trainer:
    """Takes one step of a training after the other."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: Plan,
        teacher: nn.Module | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """``model`` is changed. A ``teacher`` counts only where the plan gives soft targets a weight."""
        self._model, self._task, self._plan, self._hooks = model, task, plan, hooks
        self.optimizer = plan.optimizer(model, plan)
        self._teacher = teacher if plan.distillation > 0 else None
        self._layout = torch.contiguous_format if plan.precision == "float32" else torch.channels_last
        if any(leaf.ndim == 4 for leaf in nested.leaves(task.example)):
            nested.lay_out(model, self._layout)
        model.train()
        self._safe = SafeGradients(model)
        self._per_epoch = len(task.splits.train) // plan.batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def step(self, number: int) -> float:
        """The loss before step ``number`` of the plan, penalties included."""
        devices = [self._task.device] if self._task.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout and datasets of the user's draw from (seed, step) too
            torch.manual_seed(self._plan.seed * 7_368_787 + number)
            return self._step(Step(self._model, number, self._plan.steps, self._per_epoch))

    def _step(self, step: Step) -> float:
        for hook in self._hooks:
            hook.before_step(step)
        inputs, targets = self._batch(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._plan.lr * self._plan.rate(step.number, self._plan.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast(), self._safe.active():
            outputs = nested.call(self._model, inputs)
            loss = self._loss(inputs, outputs, targets)
        for hook in self._hooks:
            penalty = hook.penalty(step)
            loss = loss if penalty is None else loss + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for hook in self._hooks:
            hook.after_step(step)
            if step.ends_epoch:
                hook.after_epoch(step)
        return float(loss.detach())

    def _batch(self, step: Step) -> tuple[Nested, Nested]:
        train, plan = self._task.splits.train, self._plan
        place = step.number % self._per_epoch
        if step.epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(plan.seed * 1_000_003 + step.epoch)
            self._epoch, self._order = step.epoch, torch.randperm(len(train), generator=shuffle)
        indices = self._order[place * plan.batch_size : (place + 1) * plan.batch_size]
        inputs, targets = train.fetch(indices, torch.Generator().manual_seed(plan.seed * 7_368_787 + step.number + 1))
        device = self._task.device
        return nested.channels_last(nested.to(inputs, device), self._layout), nested.to(targets, device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._plan.precision == "bfloat16":
            return torch.autocast(self._task.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _loss(self, inputs: Nested, outputs: Any, targets: Nested) -> Tensor:
        logits, share = self._task.objective.logits, self._plan.distillation
        if self._task.objective.without_labels:  # the targets are what the teacher would give
            if logits is None:
                return self._task.objective.loss(outputs, targets).mean()
            return soft_targets(logits(outputs), logits(targets), self._plan.temperature)
        if self._teacher is None or logits is None:
            return self._loss_by_labels(outputs, targets)
        with torch.no_grad():
            wanted = nested.call(self._teacher, inputs)
        soft = soft_targets(logits(outputs), logits(wanted), self._plan.temperature)
        return soft if share == 1 else (1 - share) * self._loss_by_labels(outputs, targets) + share * soft

    def _loss_by_labels(self, outputs: Any, targets: Nested) -> Tensor:
        loss, logits = self._task.objective.loss(outputs, targets).mean(), self._task.objective.logits
        smoothing = self._plan.label_smoothing
        if smoothing == 0 or logits is None:
            return loss
        return (1 - smoothing) * loss + smoothing * uniform_targets(logits(outputs))


def _flush_tiny(model: nn.Module) -> None:
    """Set weights that are noise to 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < _TINY] = 0.0
