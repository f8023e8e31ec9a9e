"""Inputs and outputs of networks: a tensor, or a tuple or dict of tensors.

A tuple is for positional arguments, a dict for keyword arguments. The first axis of every tensor is the batch.
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
    """Convert to a tensor, a tuple of tensors or a dict of tensors; None if that is not possible.

    >>> type(nested([torch.zeros(1), torch.ones(1)])).__name__, nested("text")
    ('tuple', None)
    """
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
    """Apply ``function`` to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: function(leaf) for key, leaf in value.items()}
    return tuple(function(leaf) for leaf in value)


def to(value: Nested, device: torch.device | str) -> Nested:
    """Move all tensors to a device."""
    return mapped(lambda leaf: leaf.to(device), value)


def joined(values: Sequence[Nested]) -> Nested:
    """Concatenate batches."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([leaf for value in values for leaf in leaves(value)])
    columns = [torch.cat(column) for column in zip(*map(leaves, values), strict=True)]
    return dict(zip(first, columns, strict=True)) if isinstance(first, dict) else tuple(columns)


def length(value: Nested) -> int:
    """Number of samples in the batch."""
    return len(leaves(value)[0])


def shape(value: Nested) -> str:
    """The shapes without the batch as text: ``[3, 32, 32]``, or several."""
    names = list(value) if isinstance(value, dict) else []
    shapes = [str(list(leaf.shape[1:])) for leaf in leaves(value)]
    return ", ".join(f"{name} {s}" for name, s in zip(names, shapes, strict=True)) if names else ", ".join(shapes)


def call(model: nn.Module, inputs: Nested) -> Any:
    """Call a network: with a tensor as the only argument, a tuple as positional, or a dict as keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def names(value: Any, kind: str) -> list[str]:
    """Names of a runtime's inputs or outputs: a dict's keys, ``kind`` for one tensor, ``kind_0`` … for a tuple."""
    if isinstance(value, Mapping):
        return list(value)
    return [f"{kind}_{i}" for i in range(len(value))] if isinstance(value, tuple | list) else [kind]


def restored(found: Sequence[str], tensors: Sequence[Tensor], kind: str) -> Nested:
    """The inverse of `names`: the structure with these names."""
    if list(found) == [kind]:
        return tensors[0]
    if list(found) == [f"{kind}_{i}" for i in range(len(found))]:
        return tuple(tensors)
    return dict(zip(found, tensors, strict=True))


def feeds(inputs: Nested) -> Feeds:
    """The inputs as arrays, by their names in the ONNX file."""
    return dict(zip(names(inputs, "input"), (leaf.cpu().numpy() for leaf in leaves(inputs)), strict=True))


def under(given: Feeds, wanted: Sequence[str]) -> Feeds:
    """The same inputs under a file's own names, where they have general ones (`names`): those are in the file's order.

    >>> import numpy as np
    >>> list(under({"input_0": np.zeros(1), "input_1": np.ones(1)}, ["ids", "mask"]))
    ['ids', 'mask']
    """
    general = names(tuple(given.values()), "input") if len(given) > 1 else ["input"]
    if list(given) != general or len(given) != len(wanted) or set(given) == set(wanted):
        return given
    return dict(zip(wanted, given.values(), strict=True))


def channels_last(inputs: Nested, layout: torch.memory_format = torch.channels_last) -> Nested:
    """Convert images ``[N, C, H, W]`` to another memory layout; other tensors stay unchanged."""
    return mapped(lambda leaf: leaf.to(memory_format=layout) if leaf.ndim == 4 else leaf, inputs)


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Convert a network's weights ``[out, in, h, w]`` to a memory layout; those of other ranks stay unchanged."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
    "complex128",
)  # fmt: skip
"""Types that a network's inputs may have."""
MOST_TENSORS, MOST_AXES, MOST_ELEMENTS = 256, 16, 1 << 28
"""Limits on one sample, so that no file can make this process allocate more than about 1 GiB."""


@dataclass(frozen=True)
class Signature:
    """The inputs of a network: the structure ('tensor', 'tuple' or 'dict'), and shape and type of every tensor.

    >>> Signature.of(torch.zeros(1, 3, 8, 8)).tensors
    {'input': ((3, 8, 8), 'float32')}
    """

    kind: str
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    """Name → shape without the batch, and type."""

    @classmethod
    def of(cls, example: Nested) -> Signature:
        """The signature of a sample ``[1, ...]``."""
        kind = type(example).__name__ if isinstance(example, tuple | dict) else "tensor"
        found = [(tuple(leaf.shape[1:]), str(leaf.dtype).removeprefix("torch.")) for leaf in leaves(example)]
        return cls(kind, dict(zip(names(example, "input"), found, strict=True)))

    def example(self) -> Nested:
        """A sample ``[1, ...]``: normal noise, or zeros for integer types."""
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
        """The signature as JSON values."""
        return {
            "kind": self.kind,
            "tensors": {name: {"shape": list(sizes), "dtype": word} for name, (sizes, word) in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> Signature:
        """Parse and check JSON values. Raises ValueError, KeyError or TypeError."""
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
