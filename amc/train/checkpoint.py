"""The state of a training on disk: it goes on from there exactly as if it had not stopped."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import BundleError, is_out_of_memory
from amc.runtime.archives import check_archive, check_plain, load_archive
from amc.runtime.files import replacing
from amc.train.hooks import Hook
from amc.train.plan import Plan


def save(
    path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, hooks: Sequence[Hook]
) -> None:
    """Write down a training of which ``step`` steps are done."""
    state = {
        "step": step,
        "plan": _identity(plan, hooks),
        "precision": plan.precision,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "hooks": [dict(hook.state()) for hook in hooks],
    }
    content = io.BytesIO()  # torch.save does not tell a full disk from a mistake
    torch.save(state, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, hooks: Sequence[Hook]) -> int:
    """Steps already done, with model, optimiser and hooks as they were then; 0 where there is no such checkpoint.

    What a damaged one held is done again.
    """
    try:
        state = _read(path)
    except FileNotFoundError:
        return 0
    except BundleError:
        path.unlink()
        return 0
    if state["plan"] != _identity(plan, hooks):
        return 0
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [dict(hook.state()) for hook in hooks]))
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        _check(optimizer, before[1])
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            raise ValueError("it holds NaN or infinity")
        for hook, kept in zip(hooks, state.get("hooks", []), strict=True):
            hook.restore(kept)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        for hook, kept in zip(hooks, before[2], strict=True):
            hook.restore(kept)
        path.unlink()
        return 0
    return int(state["step"])


def _check(optimizer: torch.optim.Optimizer, before: dict[str, Any]) -> None:
    """Raise ValueError unless an optimiser has the settings that it had ``before``, and a state that it can go on with.

    The learning rate is set at every step.
    """
    for group, known in zip(optimizer.param_groups, before["param_groups"], strict=True):
        for name, value in known.items():
            if name not in ("params", "lr") and (type(group[name]) is not type(value) or group[name] != value):
                raise ValueError(f"another {name}")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value is None:
                continue
            shape = torch.Size() if name == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError("a state of another shape")
            check_plain("state", value, value.numel() * value.element_size())
            shared = any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True))
            if shared or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
                raise ValueError("a state that is no numbers")


def checkpoint_precision(path: Path) -> str | None:
    """The precision that an interrupted training was in, so that it goes on in the same; None without a checkpoint."""
    try:
        return str(_read(path)["precision"])
    except (FileNotFoundError, BundleError):
        return None


def _identity(plan: Plan, hooks: Sequence[Hook]) -> str:
    """What tells one training from another."""
    return repr((plan, *(hook if is_dataclass(hook) else type(hook).__qualname__ for hook in hooks)))


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint, loaded safely. Raises BundleError."""
    try:
        check_archive(path)
        state = load_archive(path)
        if not isinstance(state, dict) or not {"step", "plan", "precision", "model", "optimizer"} <= state.keys():
            raise ValueError("not a checkpoint")
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError("not a step")
    except FileNotFoundError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BundleError(f"the checkpoint {path} is damaged ({type(error).__name__}).") from None
    return state
