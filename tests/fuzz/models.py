"""ONNX files, weights, checkpoints and policies, damaged at random in their bytes and in their structure."""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.files import BUNDLE, any_value, damaged_bytes, readers
from tests.fuzz.harness import Accepted

sys.path.insert(0, str(BUNDLE.parent.parent))

RUN_SHARE = 0.01
"""So many of the ONNX files are given to the runtime too, in its own process, which takes a second."""


@cache
def networks() -> tuple[nn.Module, Any]:
    """The bundle's original network, and a sample; made once, in the parent process."""
    from networks import bundled

    import amc

    policy = amc.Policy.load(BUNDLE / "policy.json")
    model = bundled()
    amc.apply(model, policy)
    return model, policy.example()


@cache
def _onnx() -> bytes:
    return (BUNDLE / "model.onnx").read_bytes()


def onnx_file(rng: random.Random, folder: Path) -> None:
    """An ONNX file, read as a run reads one, and sometimes run as one of a stranger's."""
    from amc.deploy.export import read_onnx
    from amc.latency import ConfinedRunner, confined_process

    path = folder / "m.onnx"
    path.write_bytes(_proto(rng) if rng.random() < 0.6 else damaged_bytes(rng, _onnx(), "m.onnx"))
    before = path.read_bytes()
    with contextlib.suppress(ValueError):
        confined_process.check_external_data(path)
    if rng.random() < RUN_SHARE:
        with ConfinedRunner(path) as runner:
            runner.outputs(runner.signature.random_inputs((1, 8, 8)))
    read_onnx(path)
    if path.read_bytes() != before:
        raise Accepted("reading an ONNX file changes it")


def _proto(rng: random.Random) -> bytes:
    """The model with some fields of some messages set to something else."""
    import onnx

    model = onnx.ModelProto.FromString(_onnx())
    for _ in range(rng.choice((1, 1, 2, 4))):
        message: Any = model
        while True:
            inner = [
                m for f, v in message.ListFields() if f.message_type is not None
                for m in (v if hasattr(v, "add") else [v])
            ]  # fmt: skip
            if not inner or rng.random() < 0.25:
                break
            message = rng.choice(inner)
        fields = [f for f in message.DESCRIPTOR.fields if f.message_type is None]
        if not fields:
            continue
        _set(rng, message, rng.choice(fields))
    return model.SerializeToString()


def _set(rng: random.Random, message: Any, field: Any) -> None:
    values: Sequence[Any] = {
        field.CPPTYPE_STRING: ("", "x", "Loop", "../x", "/etc/passwd", "a\0b", "\x1b[31m", "w" * 5000),
        field.CPPTYPE_FLOAT: (0.0, -1.0, 1e38, float("nan"), float("inf")),
        field.CPPTYPE_ENUM: (0, 1, 2, 7, 16, 99),
    }.get(field.cpp_type, (0, 1, -1, 2, 3, 8, 2**31 - 1, -(2**31)))
    value = rng.choice(values)
    if field.type == field.TYPE_BYTES:
        value = value.encode() if isinstance(value, str) else value
    try:
        if hasattr(getattr(message, field.name), "append"):
            held = getattr(message, field.name)
            held.append(value) if rng.random() < 0.5 or not held else held.pop(rng.randrange(len(held)))
        else:
            setattr(message, field.name, value)
    except (TypeError, ValueError):
        pass


ODD = (
    lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: t.double(), lambda t: t.long(), lambda t: t.bool(),
    lambda t: t.to(torch.complex64), lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t * float("nan"),
    lambda t: t * float("inf"), lambda t: t.flatten(), lambda t: t[:0], lambda t: t[None], lambda t: t.sum(),
    lambda t: torch.zeros(1).expand(10**8), lambda t: torch.zeros(1).expand(2**40, 2**20), lambda t: nn.Parameter(t),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), lambda t: t.float().to(torch.float8_e4m3fn),
    lambda t: torch.nested.nested_tensor([t.flatten(), t.flatten()[:1]]), lambda t: t.numpy().tolist(),
    lambda t: torch.empty(0), lambda t: t.flatten().as_strided((2, 2), (0, 0)),
)  # fmt: skip


def weights(rng: random.Random, folder: Path) -> None:
    """Weights, as `--weights` reads them."""
    from amc.task.models import load_weights

    kind = rng.choice(("pt", "pt", "safetensors"))
    path = folder / f"w.{kind}"
    if kind == "safetensors":
        path.write_bytes(damaged_bytes(rng, readers()["weights.safetensors"][0], path.name))
    else:
        _saved(rng, _odd(rng, _state()), path)
    load_weights(_fresh(), str(path))


def checkpoint(rng: random.Random, folder: Path) -> None:
    """The state of a training in a run's folder: what is no such state is done again, and leaves the network whole."""
    from amc.train.checkpoint import checkpoint_precision, restore, save

    model, path, plan = _fresh(), folder / "checkpoint.pt", _plan()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    save(path, 3, model, optimizer, plan, [])
    state = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 2, 3))):
        place, key = state, rng.choice([*state, "model", "optimizer"])
        while isinstance(place.get(key), dict) and place[key] and rng.random() < 0.8:
            place, key = place[key], rng.choice(list(place[key]))
        value = place.get(key)
        place[key] = _changed_tensor(rng, value) if isinstance(value, Tensor) else any_value(rng)
    _saved(rng, state, path)
    checkpoint_precision(path)
    steps = restore(path, model, optimizer, plan, [])
    if type(steps) is not int or steps < 0:
        raise Accepted(f"{steps!r} steps are done")
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()


def policy(rng: random.Random, folder: Path) -> None:
    """A policy that is damaged, applied to its network."""
    import amc

    model, _ = networks()
    path = folder / "policy.json"
    path.write_bytes(damaged_bytes(rng, (BUNDLE / "policy.json").read_bytes(), "policy.json"))
    amc.apply(model, path)


def _fresh() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def _state() -> dict[str, Any]:
    return dict(_fresh().state_dict())


def _plan() -> Any:
    from amc.config import FinetuneConfig
    from amc.train.plan import Plan

    return Plan(**{**dict.fromkeys(Plan.__dataclass_fields__, 1), "precision": FinetuneConfig().precision})


def _odd(rng: random.Random, state: dict[str, Any]) -> Any:
    for _ in range(rng.choice((1, 1, 2))):
        name, change = rng.choice(list(state)), rng.randrange(8)
        if change == 0:
            del state[name]
        elif change == 1:
            state[rng.choice(("x", "", "\x1b[31m", "a\0b", 3, None, ("a",)))] = state.pop(name)
        elif change == 2:
            state[name] = any_value(rng)
        else:
            state[name] = _changed_tensor(rng, state[name])
        if not state:
            break
    wrapped = rng.randrange(12)
    if wrapped == 0:
        return rng.choice((list(state.items()), state.get("x"), 3, None, "x", [], {}, {"model": 5}, torch.zeros(3)))
    if wrapped == 1:
        return {rng.choice(("state_dict", "model", "module", "x")): state}
    if wrapped == 2:
        state["self"] = state
    return state


_MOST_CHANGED = 1 << 20


def _changed_tensor(rng: random.Random, value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.ndim or not value.numel() or not value.is_floating_point():
        return value
    if value.numel() > _MOST_CHANGED:  # would take gigabytes here, before amc sees it
        return value
    try:
        return rng.choice(ODD)(value.detach())
    except (RuntimeError, IndexError):  # torch cannot make it
        return value


def _saved(rng: random.Random, state: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(state, path, _use_new_zipfile_serialization=rng.random() < 0.8)
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(rng, path.read_bytes(), path.name))
