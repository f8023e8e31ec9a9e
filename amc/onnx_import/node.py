"""One node of an ONNX graph, with its attributes as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amc.errors import ModelError, first_line

MOST_ELEMENTS = 1 << 28
"""Most elements of a tensor that an operator makes out of sizes."""
DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""Types of ONNX tensors."""
NUMPY: Mapping[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16,
    11: np.float64,
}  # fmt: skip

Value = Tensor | NDArray[Any] | None
"""What flows along an edge: a tensor, or sizes and other small values as an array of numbers; None: left out."""


class Dim(int):
    """A size that a graph reads from a tensor, in contrast to one that is written in the file.

    >>> type(Dim(3) * 2).__name__, type(2 + Dim(3)).__name__, type(Dim(6) // Dim(3)).__name__
    ('Dim', 'Dim', 'Dim')
    """

    def __add__(self, other: Any) -> Any:
        return _size(int(self) + other)

    def __sub__(self, other: Any) -> Any:
        return _size(int(self) - other)

    def __rsub__(self, other: Any) -> Any:
        return _size(other - int(self))

    def __mul__(self, other: Any) -> Any:
        return _size(int(self) * other)

    def __floordiv__(self, other: Any) -> Any:
        return _size(int(self) // other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _size(other // int(self))

    def __mod__(self, other: Any) -> Any:
        return _size(int(self) % other)

    __radd__, __rmul__ = __add__, __mul__


def _size(value: Any) -> Any:
    return Dim(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Unsupported(ModelError):
    """A node that cannot be translated."""


@dataclass(frozen=True, eq=False)
class Node:
    """An operator with its attributes.

    >>> Node("Concat", "/Concat", {"axis": 1}, 13).whole("axis")
    1
    """

    op: str
    name: str
    attributes: Mapping[str, Any]
    opset: int

    def whole(self, key: str, default: int = 0) -> int:
        """A whole number."""
        return self._typed(key, int, default)  # type: ignore[no-any-return]

    def number(self, key: str, default: float) -> float:
        """A number."""
        return float(self._typed(key, (int, float), default))

    def text(self, key: str, default: str) -> str:
        """A text."""
        return self._typed(key, str, default)  # type: ignore[no-any-return]

    def wholes(self, key: str) -> list[int] | None:
        """Whole numbers; None where there are none."""
        found = self.attributes.get(key)
        if found is not None and not (isinstance(found, list) and all(isinstance(v, int) for v in found)):
            raise self.refused(f"its attribute {key} is not a list of whole numbers")
        return found

    def _typed(self, key: str, kind: Any, default: Any) -> Any:
        found = self.attributes.get(key, default)
        if not isinstance(found, kind):
            raise self.refused(f"its attribute {key} is {str(found)[:40]!r}")
        return found

    def refused(self, why: str) -> Unsupported:
        """The error that this node cannot be translated."""
        return Unsupported(f"{self}: {why}.")

    def failed(self, error: Exception) -> Unsupported:
        """The error that this node cannot be computed."""
        return self.refused(first_line(error).rstrip("."))

    def check_size(self, *sizes: Any) -> None:
        """Raise Unsupported for a tensor that is too large."""
        total = 1
        for size in sizes:
            total *= size if isinstance(size, int) else 1
        if total > MOST_ELEMENTS:
            raise self.refused(f"it makes a tensor of {total:,} elements")

    def __str__(self) -> str:
        return f"the ONNX operator {self.op}" + (f" ('{self.name}')" if self.name else "")


def as_tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """A value as a tensor, on the device of another."""
    if isinstance(value, Tensor):
        return value
    if value is None:
        raise TypeError("an input is missing")
    if value.dtype == object:
        value = np.array([plain(v) for v in value.reshape(-1)]).reshape(value.shape)
    return torch.from_numpy(np.array(value)).to(None if like is None else like.device)  # a copy: it may be read-only


def plain(value: Any) -> Any:
    """A number without the mark of a `Dim`; a symbolic size has no value."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise TypeError("a tensor is made of the batch size")
    return int(value) if isinstance(value, Dim) else value


def numbers(value: Value) -> list[Any]:
    """Small values as a list of numbers; a constant tensor is read."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        raise TypeError("sizes are computed from a tensor's values, which no traced network can do")
    return [v if isinstance(v, torch.SymInt | Dim) else v.item() if hasattr(v, "item") else v
            for v in value.reshape(-1)]  # fmt: skip


def scalar(value: Value) -> Any:
    """The only number of a value."""
    found = numbers(value)
    if len(found) != 1:
        raise ValueError(f"a single number is wanted, not {len(found)}")
    return found[0]


def axes_of(node: Node, given: Value, key: str = "axes") -> list[int] | None:
    """Axes, or other whole numbers, from an input, or from an attribute where there is no such input."""
    return node.wholes(key) if given is None else [int(v) for v in numbers(given)]
