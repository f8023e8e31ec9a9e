"""What networks take and give: a tensor, or several of them in a tuple or a dict.

A tuple holds positional arguments, a dict arguments by keyword; the first axis of every tensor is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Nested = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

Feeds = Mapping[str, NDArray[Any]]
"""A runtime's inputs by name."""


def nested(value: Any) -> Nested | None:
    """``value`` as a tensor, a tuple or a dict of tensors; None where it is none of these."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value):
        value = dict(value)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = tuple(value)
    else:
        return None
    return value if all(isinstance(leaf, Tensor) for leaf in leaves(value)) else None


def leaves(value: Nested) -> list[Tensor]:
    """The tensors, in order."""
    if isinstance(value, Tensor):
        return [value]
    return list(value.values()) if isinstance(value, dict) else list(value)


def mapped(function: Callable[[Tensor], Tensor], value: Nested) -> Nested:
    """The same structure with ``function`` of every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: function(leaf) for key, leaf in value.items()}
    return tuple(function(leaf) for leaf in value)


def to(value: Nested, device: torch.device | str) -> Nested:
    """On another device."""
    return mapped(lambda leaf: leaf.to(device), value)


def joined(values: Sequence[Nested]) -> Nested:
    """Batches one after the other, as one batch."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([leaf for value in values for leaf in leaves(value)])
    columns = [torch.cat(column) for column in zip(*map(leaves, values), strict=True)]
    return dict(zip(first, columns, strict=True)) if isinstance(first, dict) else tuple(columns)


def length(value: Nested) -> int:
    """Samples in the batch."""
    return len(leaves(value)[0])


def shape(value: Nested) -> str:
    """The shapes without the batch, for people: ``[3, 32, 32]``, or several."""
    names = list(value) if isinstance(value, dict) else []
    shapes = [str(list(leaf.shape[1:])) for leaf in leaves(value)]
    return ", ".join(f"{name} {s}" for name, s in zip(names, shapes, strict=True)) if names else ", ".join(shapes)


def call(model: nn.Module, inputs: Nested) -> Any:
    """The network's output: a tensor is its one argument, a tuple its arguments, a dict its keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def names(value: Any, kind: str) -> list[str]:
    """Names for what a runtime gets and gives: a dict's keys, ``kind`` for one tensor, ``kind_0`` … for a tuple."""
    if isinstance(value, Mapping):
        return list(value)
    return [f"{kind}_{i}" for i in range(len(value))] if isinstance(value, tuple | list) else [kind]


def restored(found: Sequence[str], tensors: Sequence[Tensor], kind: str) -> Nested:
    """The structure that has these ``names``."""
    if list(found) == [kind]:
        return tensors[0]
    if list(found) == [f"{kind}_{i}" for i in range(len(found))]:
        return tuple(tensors)
    return dict(zip(found, tensors, strict=True))


def feeds(inputs: Nested) -> Feeds:
    """The inputs by the names they have in the ONNX file."""
    return dict(zip(names(inputs, "input"), (leaf.cpu().numpy() for leaf in leaves(inputs)), strict=True))


def channels_last(inputs: Nested, layout: torch.memory_format = torch.channels_last) -> Nested:
    """Images ``[N, C, H, W]`` in another memory layout; other tensors as they are."""
    return mapped(lambda leaf: leaf.to(memory_format=layout) if leaf.ndim == 4 else leaf, inputs)


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Put a network's weights ``[out, in, h, w]`` into a memory layout; those of another rank stay as they are."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
    "complex128",
)  # fmt: skip
"""Types that a network may take."""
MOST_TENSORS, MOST_AXES, MOST_ELEMENTS = 256, 16, 1 << 28
"""Of what a network takes as one sample: no file makes this process allocate more than a gibibyte."""


@dataclass(frozen=True)
class Signature:
    """What a network takes: a structure of the kind 'tensor', 'tuple' or 'dict', and each tensor's shape and type."""

    kind: str
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    """Name → shape without the batch, and type."""

    @classmethod
    def of(cls, example: Nested) -> Signature:
        """Of a sample ``[1, ...]``."""
        kind = type(example).__name__ if isinstance(example, tuple | dict) else "tensor"
        told = [(tuple(leaf.shape[1:]), str(leaf.dtype).removeprefix("torch.")) for leaf in leaves(example)]
        return cls(kind, dict(zip(names(example, "input"), told, strict=True)))

    def example(self) -> Nested:
        """A sample ``[1, ...]``: noise, and zeros where numbers are whole."""
        generator = torch.Generator().manual_seed(0)
        made = {}
        for name, (sizes, word) in self.tensors.items():
            dtype = getattr(torch, word)
            filled = torch.randn(1, *sizes, generator=generator) if dtype.is_floating_point else torch.zeros(1, *sizes)
            made[name] = filled.to(dtype)
        if self.kind == "dict":
            return made
        return tuple(made.values()) if self.kind == "tuple" else next(iter(made.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "tensors": {name: {"shape": list(sizes), "dtype": word} for name, (sizes, word) in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> Signature:
        """Out of plain values, each of them checked. Raises ValueError, KeyError or TypeError."""
        tensors = {}
        for name, entry in value["tensors"].items():
            sizes, word = entry["shape"], entry["dtype"]
            if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError(f"the shape of {name} is {str(sizes)[:80]}")
            if len(sizes) > MOST_AXES or prod(max(1, size) for size in sizes) > MOST_ELEMENTS:
                raise ValueError(f"the shape of {name} is {str(sizes)[:80]}")
            if word not in DTYPES:
                raise ValueError(f"the type of {name} is {str(word)[:80]!r}")
            tensors[str(name)] = (tuple(sizes), str(word))
        if value["kind"] not in ("tensor", "tuple", "dict") or not tensors:
            raise ValueError(f"their kind is {value['kind']!r}")
        if len(tensors) > MOST_TENSORS or sum(prod(sizes) for sizes, _ in tensors.values()) > MOST_ELEMENTS:
            raise ValueError("they are too many or too large")
        return cls(value["kind"], tensors)
