"""Programs: what a network was written as, changed at random; and single operators with random arguments.

What is loaded is run, for a crash would happen then. Errors of operators at that time are no findings.
"""

from __future__ import annotations

import base64
import contextlib
import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.deploy import operators
from amc.deploy.program import read_program, write_program
from amc.errors import BundleError
from amc.task.nested import Signature
from tests.fuzz.harness import plain

INTS = (-3, -1, 0, 1, 2, 3, 5, 7, 8, 64, 255, 65536, 2**20, 2**31 - 1, 2**31, 2**40, 2**63 - 1,
        -(2**31), -(2**63), 10**30)  # fmt: skip
FLOATS = (-1.5, 0.0, 0.5, 1.0, 1e30, 1e308, -1e-320)
SHAPES = ((2, 4, 8, 8), (2, 4, 8), (4, 8), (4,), (8, 4, 3, 3), (2, 3), (), (0,), (1, 1, 1, 1), (2, 4, 4, 8, 8),
          (2, 0, 3))  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), nn.GRU(12, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(self.lstm(x.mean(1))[0])[0].mean(1))


class Odd(nn.Module):
    """Operators with indices, windows and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.t = nn.Conv2d(4, 8, 3, 1, 1), nn.ConvTranspose2d(8, 4, 2, 2)
        self.e, self.norm = nn.Embedding(10, 4), nn.GroupNorm(2, 8)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("order", torch.tensor([1, 0, 3, 2]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y, indices = F.max_pool2d(self.norm(self.a(x)), 2, return_indices=True)
        y = self.t(F.max_unpool2d(y, indices, 2))[:, self.order]
        y = F.interpolate(y, scale_factor=0.5, mode="bilinear") + self.e(self.order)[None, :, :1, None]
        grid = F.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3), [x.shape[0], 4, 6, 6], align_corners=False)
        y = F.grid_sample(y, grid, align_corners=False)
        y = F.fold(F.unfold(y, 3), 6, 3).gather(2, torch.zeros(x.shape[0], 4, 2, 6, dtype=torch.long))
        return self.fc(torch.topk(y.flatten(2), 3)[0].sum(2).softmax(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.stem(x)))
        y = self.layer(y.flatten(2).transpose(1, 2))
        return self.fc(torch.cat([part.mean(1) for part in y.chunk(2, 1)], 1).reshape(x.shape[0] * 2, -1)).sum(1)


@cache
def written() -> tuple[tuple[dict[str, Any], dict[str, Tensor]], ...]:
    """Programs and their tensors; made once, in the parent process."""
    torch.manual_seed(0)
    found = []
    for model in (Recurrent(), Odd(), Attention()):
        found.append((plain(write_program(model.eval(), torch.zeros(1, 4, 8, 8))), dict(model.state_dict())))
    return tuple(found)


@cache
def words() -> tuple[str, ...]:
    """Every operator that may be called, by its word."""
    found = []
    for name in sorted(operators.POINTWISE | operators.OTHERS):
        for full in (name, f"{name}_"):
            packet = getattr(torch.ops.aten, full, None)
            for overload in packet.overloads() if packet is not None else ():
                try:
                    operators.allowed_operator(f"aten.{full}.{overload}")
                except BundleError:
                    continue
                found.append(f"aten.{full}.{overload}")
    return tuple(found)


def mutated(rng: random.Random, folder: Path) -> None:
    """A written program with one to four changes."""
    program, state = written()[rng.randrange(3)]
    program, state = plain(program), dict(state)
    for _ in range(rng.choice((1, 1, 2, 4))):
        with contextlib.suppress(TypeError, KeyError, IndexError, AttributeError):  # an earlier change is in the way
            rng.choice(_CHANGES)(rng, program, state)
    _load_and_run(program, state, rng)


def single(rng: random.Random, folder: Path) -> None:
    """One allowed operator with arguments that its schema admits, on tensors of odd shapes, types and contents."""
    word = rng.choice(words())
    shapes = rng.sample(SHAPES, 4) if rng.random() < 0.4 else [rng.choice(SHAPES)] * 4
    names = ["t0", "t1", "t2", "t3"]
    state = {name: _tensor(rng, shape) for name, shape in zip(names, shapes, strict=True)}
    args, kwargs = _arguments(rng, word, ["x", *names])
    program = {
        "format": "amc-program", "version": 1,
        "inputs": {"kind": "tensor", "names": {"x": "x"},
                   "tensors": {"input": {"shape": [4, 8, 8], "dtype": "float32"}}},
        "tensors": {name: name for name in names}, "buffers": names, "constants": {},
        "steps": [["y", word, args, kwargs]], "output": {"node": "y"},
    }  # fmt: skip
    if rng.random() < 0.5:
        del program["inputs"]["tensors"]  # type: ignore[attr-defined]
    _load_and_run(program, state, rng)


def _arguments(rng: random.Random, word: str, names: list[str]) -> tuple[list[Any], dict[str, Any]]:
    _, name, overload = word.split(".")
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in schema.arguments:
        if argument.has_default_value() and rng.random() < 0.4:
            continue
        value = _value(rng, str(argument.type), names)
        kwargs[argument.name] = value
    return args, kwargs


def _value(rng: random.Random, kind: str, names: list[str]) -> Any:
    if kind.startswith("Optional["):
        return None if rng.random() < 0.3 else _value(rng, kind[9:-1], names)
    if kind.startswith("List["):
        return [_value(rng, kind[5:-1], names) for _ in range(rng.choice((0, 1, 1, 2, 2, 2, 3, 4, 6)))]
    if "Tensor" in kind:
        return {"node": rng.choice(names)}
    if kind in ("int", "SymInt"):
        return rng.choice(INTS[:9]) if rng.random() < 0.9 else rng.choice(INTS)
    if kind in ("number", "Scalar", "Union[int, float]", "float"):
        return rng.choice((*FLOATS, *INTS[:10]))
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "str":
        return rng.choice(("mean", "sum", "none", "tanh", "constant", "reflect", "floor", "ij,jk->ik", "amax", "same"))
    return rng.choice((None, 0, {"dtype": rng.choice(list(operators.DTYPES))}))


def _tensor(rng: random.Random, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    dtype = rng.choice((torch.float32, torch.float32, torch.int64, torch.int64, *operators.DTYPES.values()))
    found = torch.randn(shape, generator=generator) * rng.choice((1.0, 1.0, 5.0, 1e9, 1e20))
    if rng.random() < 0.2:
        found = found + rng.choice((float("nan"), float("inf")))
    return found.to(dtype)


def _load_and_run(program: dict[str, Any], state: dict[str, Tensor], rng: random.Random) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = Signature("tensor", {"input": ((4, 8, 8), "float32")}) if rng.random() < 0.5 else None
        loaded = read_program(program, state, inputs)
        given = torch.randn(rng.choice((1, 2, 3)), 4, 8, 8, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                loaded(given)
        except Exception:  # noqa: BLE001  (an operator's own refusal, when it is run)
            pass


def _step(rng: random.Random, program: dict[str, Any]) -> list[Any]:
    found: list[Any] = rng.choice(program["steps"])
    return found


def _operator(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    _step(rng, program)[1] = rng.choice((*words(), *operators.FUNCTIONS, *BAD))


BAD = (
    "aten.max_pool2d_with_indices_backward.default", "aten.segment_reduce.default",
    "aten.set_.source_Storage", "aten.resize_.default",
    "aten.from_file.default", "aten._embedding_bag.default",
    "aten.convolution_backward.default", "prims.mul.default", "aten.add",
)  # fmt: skip


def _argument(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    step = _step(rng, program)
    places: list[tuple[Any, Any]] = [(step[2], i) for i in range(len(step[2]))] + [(step[3], key) for key in step[3]]
    if not places:
        return
    holder, key = rng.choice(places)
    if isinstance(holder[key], list) and holder[key] and rng.random() < 0.7:
        holder, key = holder[key], rng.randrange(len(holder[key]))
    holder[key] = rng.choice((
        rng.choice(INTS), rng.choice(INTS[:10]), rng.choice(FLOATS),
        None, True, "mean", {"float": "nan"}, [],
        [rng.choice(INTS[:8])] * rng.randrange(1, 5),
        {"node": rng.choice(_variables(program))}, [{"node": rng.choice(_variables(program))}],
        {"dtype": rng.choice((*operators.DTYPES, "quint8", "bits8"))}, {"device": rng.choice(("cpu", "meta", "cuda"))},
    ))  # fmt: skip


def _variables(program: dict[str, Any]) -> list[str]:
    return [*program["inputs"]["names"], *program["tensors"], *program["constants"], *(s[0] for s in program["steps"])]


def _node(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    step = _step(rng, program)
    for i, value in enumerate(step[2]):
        if isinstance(value, dict) and "node" in value:
            step[2][i] = {"node": rng.choice(_variables(program))}


def _drop(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    step = _step(rng, program)
    if step[2] and rng.random() < 0.7:
        step[2].pop(rng.randrange(len(step[2])))
    else:
        program["steps"].remove(step)


def _constant(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    if not program["constants"]:
        return
    constant = program["constants"][rng.choice(list(program["constants"]))]
    constant[rng.choice(("dtype", "shape", "shape", "data"))] = rng.choice((
        "quint8", "bits8", "int64", "float8_e4m3fn", "complex128", [2**32, 2**32], [-1, -4], [0], [rng.choice(INTS)],
        base64.b64encode(rng.randbytes(32)).decode(), base64.b64encode(b"\xff" * 32).decode(), 3, None,
    ))  # fmt: skip


def _state(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    name = rng.choice(list(state))
    tensor = state[name]
    change = rng.randrange(5)
    if change == 0:
        state[name] = _tensor(rng, tuple(tensor.shape))
    elif change == 1:
        state[name] = _tensor(rng, tuple(rng.choice((0, 1, 2, n, 5 * n)) for n in tensor.shape))
    elif change == 2:
        state[name] = tensor.flatten()
    elif change == 3:
        state[name] = tensor.to(rng.choice(list(operators.DTYPES.values())))
    else:
        state[name] = state[rng.choice(list(state))]


def _inputs(rng: random.Random, program: dict[str, Any], state: dict[str, Tensor]) -> None:
    change = rng.randrange(3)
    if change == 0:
        program["inputs"].pop("tensors", None)
    elif change == 1 and "tensors" in program["inputs"]:
        program["inputs"]["tensors"]["input"]["shape"] = [rng.choice(INTS) for _ in range(3)]
    else:
        program["inputs"][rng.choice(("kind", "names", "tensors"))] = rng.choice((3, [], {}, "dict", None))


_CHANGES = (_operator, *[_argument] * 4, _node, _drop, _constant, _state, _state, _inputs)
