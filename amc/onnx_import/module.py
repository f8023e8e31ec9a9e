"""The module that runs an ONNX graph: a list of steps, each a submodule or a function of named values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amc.errors import ModelError
from amc.onnx_import.moves import MOVE_OPERATORS
from amc.onnx_import.node import Node, Value
from amc.onnx_import.sizes import SIZE_OPERATORS, shape_of
from amc.onnx_import.tensors import TENSOR_OPERATORS


@dataclass(frozen=True)
class Held:
    """An operand that the module holds: the dotted name of a parameter or a buffer."""

    name: str


Operand = str | Held | NDArray[Any] | None
"""A value by its name in the graph, a tensor of the module, or a small constant; None: left out."""


@dataclass(frozen=True, eq=False)
class GraphStep:
    """One operator."""

    node: Node
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    module: str | None = None
    """The submodule that computes it; None: a function of the node."""
    last: tuple[str, ...] = ()
    """Values that no later step reads."""


@dataclass(frozen=True, eq=False)
class Interface:
    """What a file says about itself, and its exports keep."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Its metadata_props."""
    opset: int = 0
    fixed_batch: int | None = None
    """The batch size, where the file is for one only."""


class OnnxModel(nn.Module):
    """A network from an ONNX file.

    It is called with its inputs in the file's order, or by their names. It gives a tensor where the file has one
    output, else a dict of tensors by the names of the outputs.
    """

    def __init__(self, interface: Interface) -> None:
        super().__init__()
        self.interface = interface
        self._steps: tuple[GraphStep, ...] = ()
        self._results: tuple[Operand, ...] = ()

    def set_steps(self, steps: tuple[GraphStep, ...], results: tuple[Operand, ...]) -> None:
        """Set the steps and what they lead to. The submodules that they name are there already."""
        self._steps, self._results = steps, results

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | dict[str, Tensor]:
        values: dict[str, Any] = dict(self._given(args, kwargs))
        for step in self._steps:
            found = self._run(step, values)
            outputs = found if isinstance(found, list) else [found]
            values.update(zip(step.outputs, outputs, strict=False))
            for name in step.last:
                values.pop(name, None)
        results = [self._value(operand, values) for operand in self._results]
        if len(results) == 1:
            return results[0]  # type: ignore[no-any-return]
        return dict(zip(self.interface.outputs, results, strict=True))

    def _given(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        names = self.interface.inputs
        if args and not kwargs and len(args) == len(names):
            return dict(zip(names, args, strict=True))
        if not args and kwargs.keys() == set(names):
            return kwargs
        given = ", ".join(kwargs) or str(len(args))
        raise ModelError(f"the network takes the inputs {', '.join(names)}, but is given {given}.")

    def _run(self, step: GraphStep, values: Mapping[str, Any]) -> Any:
        inputs = [self._value(operand, values) for operand in step.inputs]
        if step.module is not None:
            return self.get_submodule(step.module)(*inputs)
        return compute(step.node, inputs)

    def _value(self, operand: Operand, values: Mapping[str, Any]) -> Any:
        if isinstance(operand, Held):
            prefix, _, key = operand.name.rpartition(".")
            return getattr(self.get_submodule(prefix), key)
        return values[operand] if isinstance(operand, str) else operand


def compute(node: Node, inputs: list[Value], mark: bool = False) -> Any:
    """What an operator without a module gives. ``mark``: sizes are given as `amc.onnx_import.node.Dim`."""
    if node.op == "Shape":
        return shape_of(node, inputs[0], mark)
    if node.op == "Size" and isinstance(inputs[0], Tensor):
        return np.array(inputs[0].numel(), np.int64)
    small = all(isinstance(value, np.ndarray) or value is None for value in inputs)
    if small and node.op in SIZE_OPERATORS and not _makes_tensor(node, inputs):
        return SIZE_OPERATORS[node.op](node, *inputs)
    function = TENSOR_OPERATORS.get(node.op) or MOVE_OPERATORS.get(node.op)
    if function is None:
        raise node.refused("it is not supported" if node.op not in SIZE_OPERATORS else "it is not supported on tensors")
    return function(node, *inputs)


def _makes_tensor(node: Node, inputs: list[Value]) -> bool:
    """Whether sizes become a tensor: one of them is the batch, or it is large or of floats."""
    if node.op == "ConstantOfShape":
        sizes = inputs[0]
        assert isinstance(sizes, np.ndarray)
        value = node.attributes.get("value", np.zeros(1, np.float32))
        return sizes.size > 1 or value.dtype != np.int64
    if node.op == "Range":
        return any(isinstance(v, torch.SymInt) for value in inputs if value is not None for v in value.reshape(-1))
    return False
