"""From the graph of an ONNX file to a torch module, on one example input.

Nodes are translated in order while the example runs through them, so that the rank and the sizes of everything are
known. What depends on constants alone is computed once. A node with constant weights becomes a layer, one that holds
sizes a module, and every other a function (`amc.onnx_import.module.GraphStep`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc.errors import AmcError, ModelError, is_out_of_memory
from amc.onnx_import.holders import moving_module
from amc.onnx_import.layers import LAYERS, Made, make_layer
from amc.onnx_import.module import GraphStep, Held, OnnxModel, Operand, compute
from amc.onnx_import.moves import MOVE_OPERATORS
from amc.onnx_import.node import DTYPES, Node, Value, as_tensor
from amc.onnx_import.read import OnnxGraph, constant_of
from amc.onnx_import.sizes import SIZE_OPERATORS
from amc.onnx_import.tensors import TENSOR_OPERATORS
from amc.onnx_import.windows import padded

_SIZED = frozenset(("Reshape", "Resize", "Upsample", "Slice", "Pad", "Tile", "Expand", "Split", "Squeeze", "Unsqueeze",
                    "OneHot"))  # fmt: skip
"""Operators whose inputs, but for the first, are sizes."""
_SMALL = 128
"""Most whole numbers of a constant that is held as numbers, not as a tensor."""


def supported_operators() -> list[str]:
    """The names of all ONNX operators that are supported.

    >>> {"Conv", "Reshape", "Softmax"} <= set(supported_operators())
    True
    """
    return sorted({"Constant", "Shape", "Size", "Expand", "Split", *LAYERS, *TENSOR_OPERATORS, *MOVE_OPERATORS,
                   *SIZE_OPERATORS})  # fmt: skip


@dataclass(frozen=True)
class OnnxOperator:
    """An entry of the table of operators."""

    summary: str


def operator_table() -> dict[str, OnnxOperator]:
    """Every supported operator, and what it becomes.

    >>> operator_table()["Gemm"].summary
    'a layer where its weights are constants, else a function'
    """
    always = {"BatchNormalization", "ConvTranspose", "GroupNormalization", "RMSNormalization"}
    held = {"Reshape", "Expand", "Split", "Slice"}
    found = {}
    for name in supported_operators():
        layer = "a layer" if name in always else "a layer where its weights are constants, else a function"
        other = "a module, whose sizes follow pruning" if name in held else "a function"
        found[name] = OnnxOperator(layer if name in LAYERS else other)
    return found


class Padding(nn.Module):
    """Uneven padding before a convolution, with zeros."""

    def __init__(self, pads: Sequence[int]) -> None:
        super().__init__()
        self._pads = tuple(pads)

    def forward(self, x: Tensor) -> Tensor:
        return padded(x, self._pads)


def build_model(graph: OnnxGraph, example: Mapping[str, Tensor]) -> OnnxModel:
    """The module of a graph, in evaluation mode. ``example`` is one sample ``[1, ...]``, by the inputs' names.

    Raises ModelError in one line.
    """
    check_example(graph, example)
    with torch.no_grad():
        return _Builder(graph, example).build()


def check_example(graph: OnnxGraph, example: Mapping[str, Tensor]) -> None:
    """Raise ModelError where a sample does not fit the inputs of a file, or the file is for larger batches only."""
    if set(example) != set(graph.inputs):
        names = f"{', '.join(graph.inputs)}, but the data have {', '.join(map(str, example))}"
        raise ModelError(f"{graph.path} takes the inputs {names}.")
    batch = graph.interface.fixed_batch
    if batch not in (None, 1):
        raise ModelError(f"{graph.path} is for batches of {batch} only: export it with an open batch size, or of 1.")
    for name, entry in graph.inputs.items():
        given, wanted = example[name], [None, *entry.shape[1:]] if entry.shape else []
        if entry.shape and (given.ndim != len(wanted) or any(w not in (None, g) for g, w in
                                                             zip(given.shape, wanted, strict=True))):  # fmt: skip
            sizes = ", ".join("?" if size is None else str(size) for size in wanted[1:])
            raise ModelError(
                f"{graph.path} takes '{name}' of shape [{sizes}], but the data have {list(given.shape[1:])}"
                f"{': name the size with --image-size' if given.ndim == 4 and given.shape[1] in (1, 3) else ''}."
            )
        if DTYPES[entry.dtype] != given.dtype:
            kinds = [str(t).removeprefix("torch.") for t in (DTYPES[entry.dtype], given.dtype)]
            raise ModelError(f"{graph.path} takes '{name}' as {kinds[0]}, but the data have {kinds[1]}.")


class _Builder:
    """Translates one graph."""

    def __init__(self, graph: OnnxGraph, example: Mapping[str, Tensor]) -> None:
        self._graph, self._example = graph, dict(example)
        self._model = OnnxModel(graph.interface)
        self._steps: list[GraphStep] = []
        self._values: dict[str, Any] = {"": None, **graph.constants, **example}
        self._constant = {"", *graph.constants}
        self._origin = {name: name for name in graph.constants}
        """The initializer that a constant was computed from, if it is a single one."""
        self._held: dict[str, Held] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        """Tensors that more than one layer reads: name of the constant and key → parameter."""
        self._live = self._needed()
        self._readers = Counter(name for index in self._live for name in graph.nodes[index][1])
        self._readers.update(graph.interface.outputs)
        self._makers: dict[str, int] = {}

    def _needed(self) -> list[int]:
        """The nodes that outputs depend on, in order."""
        wanted, found = set(self._graph.interface.outputs), []
        for index in reversed(range(len(self._graph.nodes))):
            _, inputs, outputs = self._graph.nodes[index]
            if wanted & set(outputs):
                wanted |= set(inputs)
                found.append(index)
        return found[::-1]

    def build(self) -> OnnxModel:
        for index in self._live:
            node, inputs, outputs = self._graph.nodes[index]
            missing = next((name for name in inputs if name not in self._values), None)
            if missing is not None:
                raise node.refused(f"its input '{missing}' comes from nowhere")
            try:
                self._translate(node, inputs, outputs)
            except AmcError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise node.failed(error) from error
        results = tuple(self._result(name) for name in self._graph.interface.outputs)
        self._model.set_steps(_released(self._steps, results), results)
        return self._model.eval()

    def _result(self, name: str) -> Operand:
        if name not in self._values:
            raise ModelError(f"{self._graph.path}: the output '{name}' comes from nowhere.")
        if isinstance(self._values[name], Tensor):
            return name
        raise ModelError(f"{self._graph.path}: the output '{name}' is no tensor that depends on the inputs.")

    def _translate(self, node: Node, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        values = [self._values[name] for name in inputs]
        if node.op == "Constant":
            self._fold(outputs, [constant_of(node)], ())
        elif all(name in self._constant for name in inputs) and inputs:
            found = compute(node, values)
            self._fold(outputs, found if isinstance(found, list) else [found], inputs)
        elif not self._fused(node, inputs, outputs):
            self._translate_varying(node, values, inputs, outputs)

    def _fold(self, outputs: tuple[str, ...], found: list[Any], inputs: tuple[str, ...]) -> None:
        sources = {self._origin[name] for name in inputs if name in self._origin}
        for name, value in zip(outputs, found, strict=False):
            self._values[name] = value.numpy() if isinstance(value, Tensor) else value
            self._constant.add(name)
            if len(sources) == 1:
                self._origin[name] = next(iter(sources))

    def _translate_varying(
        self, node: Node, values: list[Value], inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        made = make_layer(node, values)
        if made is not None:
            self._add_layer(node, made, inputs, outputs)
            return
        moving = moving_module(node, values, self._graph.interface.fixed_batch == 1)
        module, used = moving if moving is not None else (None, list(range(len(inputs))))
        operands = tuple(self._operand(node, place, inputs[place]) for place in used)
        name = None if module is None else self._attach(module, node.name, node.op)
        self._add(GraphStep(node, operands, outputs, name))

    def _add_layer(self, node: Node, made: Made, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        source = inputs[made.named]
        own = self._origin.get(source, source)
        for key, parameter in made.module.named_parameters():
            shared = f"{own}\n{key}\n{tuple(parameter.shape)}"
            if key == "weight" and self._readers[own] > 1:
                made.module._parameters[key] = self._parameters.setdefault(shared, parameter)
        stem = own.removesuffix(".weight") if own.endswith(".weight") else stem_of(node)
        name = self._attach(made.module, stem, node.op)
        data = [inputs[place] for place in made.inputs]
        if made.pads:
            padding = self._attach(Padding(made.pads), f"{name}_padding", "Pad")
            middle = f"{outputs[0]}\npadded"
            self._add(GraphStep(node, (data[0],), (middle,), padding))
            data[0] = middle
        self._add(GraphStep(node, tuple(data), outputs, name))

    def _add(self, step: GraphStep) -> None:
        """Append a step, and compute its outputs on the example."""
        inputs = [self._model._value(operand, self._values) for operand in step.inputs]
        if step.module is None:
            found = compute(step.node, inputs, mark=True)
        else:
            found = self._model.get_submodule(step.module)(*inputs)
        given = found if isinstance(found, list) else [found]
        wanted = [name for name in step.outputs if name and self._readers[name]]
        if len(given) < len(step.outputs) and set(wanted) - set(step.outputs[: len(given)]):
            raise step.node.refused(f"of its outputs only the first {len(given)} are supported")
        self._values.update(zip(step.outputs, given, strict=False))
        for name in step.outputs:
            self._makers[name] = len(self._steps)
        self._steps.append(step)

    def _operand(self, node: Node, place: int, name: str) -> Operand:
        if name not in self._constant or name == "":
            return name or None
        array = self._values[name]
        whole = array.dtype.kind in "iub" or array.dtype == object
        if array.size == 1 or (node.op in _SIZED and place > 0) or (whole and array.ndim <= 1 and array.size <= _SMALL):
            return array  # type: ignore[no-any-return]
        return self._hold(name, array)

    def _hold(self, name: str, array: Any) -> Held:
        """A tensor of the module: a parameter for what the file lists as a weight, else a buffer."""
        if name not in self._held:
            tensor = as_tensor(np.array(array))
            weight = tensor.is_floating_point() and name in self._origin
            own = self._origin.get(name, name) if weight else name
            self._held[name] = Held(self._attach(nn.Parameter(tensor) if weight else tensor, own, "constant"))
        return self._held[name]

    def _fused(self, node: Node, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> bool:
        """Whether an addition of constants is the bias of the layer before it."""
        if node.op != "Add" or len(inputs) != 2:
            return False
        for data, bias in (inputs, inputs[::-1]):
            array, maker = self._values[bias], self._makers.get(data)
            if bias not in self._constant or maker is None or self._readers[data] != 1:
                continue
            step = self._steps[maker]
            layer = None if step.module is None else self._model.get_submodule(step.module)
            axis = -1 if isinstance(layer, nn.Linear) else 1
            if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or layer.bias is not None:
                continue
            rank, width = self._values[data].ndim, layer.weight.shape[0]
            shape = [1] * (rank - array.ndim) + list(array.shape)
            if array.dtype != np.float32 or len(shape) != rank or array.size != width or shape[axis] != width:
                continue
            layer.bias = nn.Parameter(torch.from_numpy(np.array(array)).reshape(-1))
            self._steps[maker] = replace(step, outputs=outputs)
            self._values[outputs[0]] = self._values[data] + torch.from_numpy(np.array(array))
            self._makers[outputs[0]] = maker
            return True
        return False

    def _attach(self, item: nn.Module | Tensor, wanted: str, kind: str) -> str:
        """Put a module or a tensor into the model under a name like the wanted one; gives the dotted name."""
        parts = [p for p in re.sub(r"[^\w.]+", ".", wanted, flags=re.ASCII).split(".") if p] or [kind.lower()]
        parts = [f"{p}_" if hasattr(nn.Module, p) or p in ("interface",) else p for p in parts]
        home, path = self._home(parts[:-1])
        key, number = parts[-1], 2
        while hasattr(home, key):
            key, number = f"{parts[-1]}_{number}", number + 1
        if isinstance(item, nn.Module):
            home.add_module(key, item)
        elif isinstance(item, nn.Parameter):
            home.register_parameter(key, item)
        else:
            home.register_buffer(key, item)
        return ".".join([*path, key])

    def _home(self, parts: list[str]) -> tuple[nn.Module, list[str]]:
        """The container of this path; a part that is something else already gets another name."""
        home: nn.Module = self._model
        path: list[str] = []
        for part in parts:
            key = part
            while hasattr(home, key) and type(home._modules.get(key)) is not nn.Module:
                key += "_"
            if key not in home._modules:
                home.add_module(key, nn.Module())
            home = home.get_submodule(key)
            path.append(key)
        return home, path


def stem_of(node: Node) -> str:
    """The module's name in a node's, as exporters write it: scopes with slashes, the operator last.

    >>> stem_of(Node("MatMul", "/blocks/blocks.0/attn/qkv/MatMul", {}, 17))
    'blocks.0.attn.qkv'
    """
    parts: list[str] = []
    for part in filter(None, node.name.split("/")):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    own = [part for part in parts if not re.fullmatch(rf"{re.escape(node.op)}(_\d+)?", part)]
    return ".".join(own or parts)


def _released(steps: Sequence[GraphStep], results: Sequence[Operand]) -> tuple[GraphStep, ...]:
    """The steps, each with the values that nothing reads after it."""
    later = {operand for operand in results if isinstance(operand, str)}
    found = []
    for step in reversed(steps):
        read = {operand for operand in step.inputs if isinstance(operand, str)}
        names = (read | {name for name in step.outputs if name}) - later
        found.append(replace(step, last=tuple(sorted(names))))
        later |= read
    return tuple(reversed(found))
