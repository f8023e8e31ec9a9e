"""Training: of a network from scratch, and of a pruned one with the original as its teacher.

SGD with Nesterov momentum and a one-cycle rate (linear up over a fifth of the steps, cosine down to 0). Every
step draws its images and augmentation from (seed, step) alone, so training goes on from a checkpoint exactly as
if it had not stopped. Distillation: Hinton et al. 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.config import FinetuneConfig
from amc.errors import BundleError, ModelError, first_line
from amc.runtime.files import replacing
from amc.task import Task, nested
from amc.task.nested import Nested

CHECKPOINT_SECONDS = 20.0
_TINY = 1e-30  # weights this small are noise, and denormals make inference many times slower


@dataclass(frozen=True)
class Plan:
    """A training run. ``precision``: 'float32', 'channels_last' (float32) or 'bfloat16' (with channels_last)."""

    steps: int
    lr: float
    batch_size: int
    weight_decay: float
    distillation: float
    temperature: float
    seed: int
    precision: str = "float32"


def make_plan(config: FinetuneConfig, task: Task, epochs: float, seed: int) -> Plan:
    """The plan for so many epochs over the training split."""
    batch = min(config.batch_size, len(task.splits.train))
    steps = math.ceil(epochs * (len(task.splits.train) // batch))
    return Plan(steps, config.lr, batch, config.weight_decay, config.distillation, config.temperature, seed)


def asked_precision(config: FinetuneConfig) -> str | None:
    """The plan's precision that the user asks for; None where the faster one is to be found."""
    return {"float32": "channels_last", "bfloat16": "bfloat16"}.get(config.precision)


def checkpoint_precision(path: Path) -> str | None:
    """The precision that an interrupted training was in, so that it goes on in the same."""
    return str(_read(path)["precision"]) if path.exists() else None


def train(
    model: nn.Module,
    task: Task,
    plan: Plan,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> nn.Module:
    """Train ``model`` in place and leave it in evaluation mode, contiguous, in float32.

    ``progress`` is told the share of steps done and the running loss. Raises ModelError when the loss is no
    longer finite.
    """
    optimizer = _optimizer(model, plan)
    start = _restore(checkpoint, model, optimizer, plan) if checkpoint else 0
    step_once = _Stepper(model, task, plan, optimizer, teacher)
    saved, running = time.monotonic(), 0.0
    for step in range(start, plan.steps):
        loss = step_once(step)
        if not math.isfinite(loss):
            raise ModelError(f"training diverged in step {step} (loss {loss}): lower --lr (now {plan.lr}).")
        running = loss if step == start else 0.95 * running + 0.05 * loss
        if progress:
            progress((step + 1) / plan.steps, running)
        if checkpoint and (time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == plan.steps):
            _save(checkpoint, step + 1, model, optimizer, plan)
            saved = time.monotonic()
    model.to(memory_format=torch.contiguous_format).eval()
    _flush_tiny(model)
    return model


def fastest_precision(model: nn.Module, task: Task, plan: Plan, teacher: nn.Module | None) -> str:
    """The precision whose training step takes least time here; float32 unless another saves a tenth."""
    seconds = {}
    for precision in ("float32", "channels_last", "bfloat16"):
        trial = copy.deepcopy(model)
        tried = Plan(4, 1e-9, plan.batch_size, 0.0, plan.distillation, plan.temperature, plan.seed, precision)
        step_once = _Stepper(trial, task, tried, _optimizer(trial, tried), teacher)
        times = []
        for step in range(tried.steps):
            start = time.perf_counter()
            step_once(step)  # gives the loss, and so waits for the device
            times.append(time.perf_counter() - start)
        seconds[precision] = min(times[1:])
    best = min(seconds, key=lambda p: seconds[p])
    return best if seconds[best] < 0.9 * seconds["float32"] else "float32"


class _Stepper:
    """One optimiser step at a time."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: Plan,
        optimizer: torch.optim.Optimizer,
        teacher: nn.Module | None,
    ) -> None:
        self._model, self._task, self._plan = model, task, plan
        self._optimizer = optimizer
        self._teacher = teacher if plan.distillation > 0 else None
        self._layout = torch.contiguous_format if plan.precision == "float32" else torch.channels_last
        if any(leaf.ndim == 4 for leaf in nested.leaves(task.example)):
            model.to(memory_format=self._layout)
        model.train()
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> float:
        devices = [self._task.device] if self._task.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout and datasets of the user's draw from (seed, step) too
            torch.manual_seed(self._plan.seed * 7_368_787 + step)
            return self._step(step)

    def _step(self, step: int) -> float:
        inputs, targets = self._batch(step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.lr * one_cycle(step, self._plan.steps)
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            outputs = nested.call(self._model, inputs)
            loss = self._loss(inputs, outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def _batch(self, step: int) -> tuple[Nested, Nested]:
        train, plan = self._task.splits.train, self._plan
        per_epoch = len(train) // plan.batch_size
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(plan.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(train), generator=shuffle)
        indices = self._order[place * plan.batch_size : (place + 1) * plan.batch_size]
        inputs, targets = train.fetch(indices, torch.Generator().manual_seed(plan.seed * 7_368_787 + step + 1))
        device = self._task.device
        return nested.channels_last(nested.to(inputs, device), self._layout), nested.to(targets, device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._plan.precision == "bfloat16":
            return torch.autocast(self._task.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _loss(self, inputs: Nested, outputs: Any, targets: Nested) -> Tensor:
        loss, logits = self._task.objective.loss(outputs, targets).mean(), self._task.objective.logits
        if self._teacher is None or logits is None:
            return loss
        with torch.no_grad():
            wanted = nested.call(self._teacher, inputs)
        share, t = self._plan.distillation, self._plan.temperature
        return (1 - share) * loss + share * soft_targets(logits(outputs), logits(wanted), t)


def soft_targets(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL divergence of the teacher's softened classes from the student's, times T², mean over samples."""
    student = F.log_softmax(outputs.float() / temperature, 1)
    teacher = F.log_softmax(wanted.float() / temperature, 1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean() * temperature**2


def one_cycle(step: int, steps: int, warmup: float = 0.2) -> float:
    """Share of the peak rate in ``step`` of ``steps``."""
    place, top = (step + 1) / (steps + 1), warmup
    return place / top if place < top else 0.5 * (1 + math.cos(math.pi * (place - top) / (1 - top)))


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=True)


def _flush_tiny(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < _TINY] = 0.0


def _save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    state = {
        "step": step,
        "plan": repr(plan),
        "precision": plan.precision,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    content = io.BytesIO()  # torch.save does not tell a full disk from a mistake
    torch.save(state, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> int:
    """Steps already done, with the model and the optimiser as they were then; 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = _read(path)
    if state["plan"] != repr(plan):
        return 0
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise BundleError(f"the checkpoint {path} is of another network: delete it ({first_line(error)}).") from None
    return int(state["step"])


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint, loaded safely. Raises BundleError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"step", "plan", "precision", "model", "optimizer"} <= state.keys():
            raise ValueError("not a checkpoint")
    except Exception as error:  # noqa: BLE001  (whatever a damaged file makes the loader throw)
        kind = type(error).__name__
        raise BundleError(f"the checkpoint {path} is damaged ({kind}): delete it and resume again.") from None
    return state
