"""Programs: a network as a JSON list of the ATen operators that torch.export finds, with its tensors in another file.

A program does not need the source class. torch.export has its own archive format, but loading an archive unpickles
content, evaluates strings and loads libraries. A program only names ATen operators and arithmetic on sizes. None of its
content is executed as code: operators are looked up in an allowlist, and names must be plain identifiers.

=========  ==========================================================================================
inputs     names of the arguments, and whether the network takes one, a tuple or a dict of them
tensors    variable → name in the state dict; ``buffers`` lists those that are not parameters
constants  variable → tensor: dtype, shape and bytes in base 64
steps      variable = operator(arguments): {"node": variable}, {"dtype": "float32"} …, or JSON values
output     a variable, or lists and dicts of variables
=========  ==========================================================================================
"""

from __future__ import annotations

import base64
import inspect
import keyword
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_unflatten

from amc.deploy.operators import (
    DTYPES,
    LAYOUTS,
    MEMORY_FORMATS,
    NAMES,
    allowed_operator,
    called,
    check_tensor,
)
from amc.deploy.trial import try_program
from amc.errors import BundleError, ExportError, first_line
from amc.graph.attention import without_fast_path
from amc.runtime.silence import silenced
from amc.task import nested
from amc.task.checks import copied
from amc.task.nested import Nested, Signature

FORMAT, VERSION = "amc-program", 1

_ASSERTIONS = ("aten._assert_", "aten.sym_constrain_range")
_TYPED: dict[str, tuple[type, Mapping[str, Any]]] = {
    "dtype": (torch.dtype, DTYPES),
    "layout": (torch.layout, LAYOUTS),
    "memory_format": (torch.memory_format, MEMORY_FORMATS),
}
_TRAINED = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}
"""Operators that differ between training and evaluation, and the index of the argument for it."""


FIXED_BATCH = "it fixes its batch size: x.shape[0] keeps it open, len(x) and int(...) do not"
DECIDES = (
    "its forward decides by values of its input (an if on a tensor, .item(), int(...) or float(...)), which a file of "
    "operators cannot: torch.where on tensors can"
)
"""A common reason why a network cannot be exported."""


def arguments(model: nn.Module, example: Nested) -> tuple[tuple[Tensor, ...], dict[str, Tensor], Any]:
    """Arguments for torch's exporters: positional and keyword arguments with two samples, and dynamic shapes.

    The first axis is dynamic. torch expects the shapes for ``*args`` and ``**kwargs`` of ``forward`` in a nested tuple
    and a nested dict.
    """
    twice = nested.mapped(lambda leaf: leaf.cpu().repeat(2, *[1] * (leaf.ndim - 1)), example)
    batch = {0: torch.export.Dim("batch")}
    parameters = inspect.signature(model.forward).parameters.values()
    if isinstance(twice, dict):
        named = {key: batch for key in twice if key in {p.name for p in parameters}}
        rest = {key: batch for key in twice if key not in named}
        more = next((p.name for p in parameters if p.kind == p.VAR_KEYWORD), None)
        return (), twice, {**named, more: rest} if rest and more else {**named, **rest}
    args = (twice,) if isinstance(twice, Tensor) else twice
    positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    is_open = any(p.kind == p.VAR_POSITIONAL for p in parameters)
    shapes: tuple[Any, ...] = (batch,) * len(args)
    return args, {}, (*shapes[:positional], shapes[positional:]) if is_open and shapes[positional:] else shapes


def why(error: BaseException) -> str:
    """Explain an error of torch's exporters in one line.

    >>> why(RuntimeError("Constraints violated (batch)! For more information, …"))
    'it fixes its batch size: x.shape[0] keeps it open, len(x) and int(...) do not'
    """
    message = str(error)
    if "data-dependent" in message or "GuardOnDataDependent" in type(error).__name__:
        return DECIDES
    if "Constraints violated" in message or "specialized" in message:
        return FIXED_BATCH
    unknown = re.search(r"translating node %\w+ .*?target=torch\.ops\.(?:aten\.)?([\w.]+?)(?:\.\w+)?\]", message)
    if unknown is not None:
        if "Unsupported attribute type" in _innermost(error):
            return f"{unknown.group(1)} has an argument that depends on the batch size, which ONNX cannot have"
        return f"ONNX has no operator for {unknown.group(1)}, or torch does not know how to write it"
    return first_line(error).removesuffix(" See the stack trace for more information.")


def _innermost(error: BaseException) -> str:
    """The message of the error at the root of a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


# Writing


def write_program(model: nn.Module, example: Nested) -> dict[str, Any]:
    """The program of ``model`` (evaluation mode) with a dynamic batch, as JSON values. Raises ExportError."""
    own = copied(model).cpu().eval()
    args, kwargs, shapes = arguments(own, example)
    try:
        with silenced("torch", "onnxscript", "onnx_ir"), torch.no_grad(), without_fast_path():
            exported = torch.export.export(own, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(f"the network cannot be exported as a program: {why(error)}") from error
    try:
        return _written(exported, example)
    except _Unwritable as error:
        raise ExportError(f"the network cannot be written as a program: {error}.") from None


class _Unwritable(Exception):
    """Part of a network that a program cannot express."""


def _written(exported: torch.export.ExportedProgram, example: Nested) -> dict[str, Any]:
    inputs: list[str] = []
    tensors: dict[str, str] = {}
    constants: dict[str, Any] = {}
    buffers: list[str] = []
    for spec in exported.graph_signature.input_specs:
        variable = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(variable)
        elif spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            tensors[variable] = str(spec.target)
            buffers += [variable] if spec.kind == InputKind.BUFFER else []
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            constants[variable] = _constant(exported.constants[str(spec.target)])
        else:
            raise _Unwritable(f"it has an input of the kind {spec.kind.name}")
    for output in exported.graph_signature.output_specs:
        if output.kind != OutputKind.USER_OUTPUT:
            raise _Unwritable(f"its forward modifies its tensor {output.target}")
    return {
        "format": FORMAT,
        "version": VERSION,
        "inputs": {
            **Signature.of(example).to_json(),
            "names": dict(zip(inputs, nested.names(example, "input"), strict=True)),
        },
        "tensors": tensors,
        "buffers": buffers,
        "constants": constants,
        "steps": [_step(n) for n in exported.graph.nodes if n.op not in ("placeholder", "output") and not _asserts(n)],
        "output": _output(exported),
    }


def _asserts(node: fx.Node) -> bool:
    return str(node.target).startswith(_ASSERTIONS)


def _step(node: fx.Node) -> list[Any]:
    if node.op != "call_function":
        raise _Unwritable(f"it has a step of the kind {node.op}")
    target: Any = node.target
    word = str(target) if isinstance(target, torch._ops.OpOverload) else NAMES.get(target)
    if word is None:
        raise _Unwritable(f"{getattr(target, '__name__', target)} is not an ATen operator")
    try:
        allowed_operator(word)
    except BundleError as error:
        raise _Unwritable(f"{word} is not among the operators that a program may have") from error
    return [node.name, word, [_plain(a) for a in node.args], {k: _plain(a) for k, a in node.kwargs.items()}]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, torch.device):
        return {"device": value.type}
    for word, (kind, known) in _TYPED.items():
        name = str(value).removeprefix("torch.")
        if isinstance(value, kind) and name in known:
            return {word: name}
    raise _Unwritable(f"it has an argument of the type {type(value).__name__}")


def _output(exported: torch.export.ExportedProgram) -> Any:
    """The structure of the output, with variables in place of tensors."""
    nodes = next(n for n in exported.graph.nodes if n.op == "output").args[0]
    assert isinstance(nodes, tuple | list)
    spec = exported.call_spec.out_spec
    assert spec is not None
    return _structure(tree_unflatten([_plain(node) for node in nodes], spec))


def _structure(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"node"}:
            return dict(value)
        if not all(isinstance(key, str) for key in value):
            raise _Unwritable("it returns a dict whose keys are not strings")
        return {"dict": {key: _structure(v) for key, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_structure(v) for v in value]}
    if value is None or isinstance(value, bool | int | float):
        return {"value": value}
    raise _Unwritable(f"it returns a {type(value).__name__}")


def _constant(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous()
    content = array.flatten().view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(array.dtype).removeprefix("torch."),
        "shape": list(array.shape),
        "data": base64.b64encode(content).decode("ascii"),
    }


# Reading


class Program(fx.GraphModule):
    """A network that was loaded as a program. Its BatchNorms and dropouts follow the training mode."""

    def train(self, mode: bool = True) -> Program:
        for node in self.graph.nodes:
            place = _TRAINED.get(str(node.target))
            # a BatchNorm without running statistics is always in training mode
            if place is not None and not (place == 5 and node.args[3] is None):
                node.update_arg(place, mode)
        self.recompile()
        super().train(mode)
        return self


def read_program(program: Any, state: Mapping[str, Tensor], inputs: Signature | None = None) -> Program:
    """Build the network of a program with its tensors. Raises BundleError for anything that is not a valid program.

    It is tried on fake tensors of the shapes that it records. Older programs record none; then ``inputs`` gives them.
    """
    if not isinstance(program, dict) or program.get("format") != FORMAT:
        raise BundleError('program.json is not a program: it has no "format": "amc-program".')
    if program.get("version") != VERSION:
        raise BundleError(f"the program has version {program.get('version')!r}, but this amc reads version {VERSION}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _read(program, state)
            if "tensors" in program["inputs"]:
                inputs = Signature.from_json(program["inputs"])
            if inputs is not None:
                try_program(found, inputs)
            return found
    except BundleError:
        raise
    except Exception as error:  # a damaged file may cause any exception
        raise BundleError(f"the program is damaged ({type(error).__name__}: {first_line(error)}).") from error


def _read(program: Mapping[str, Any], state: Mapping[str, Tensor]) -> Program:
    graph, root = fx.Graph(), nn.Module()
    variables: dict[str, fx.Node] = {}
    for variable, name in program["inputs"]["names"].items():
        asked = variable if program["inputs"]["kind"] != "dict" else name
        variables[variable] = graph.placeholder(_word(asked))
    for variable, name in program["tensors"].items():
        _attach(root, name, check_tensor(name, state[name]), variable in program["buffers"])
        variables[variable] = graph.get_attr(name)
    for number, (variable, constant) in enumerate(program["constants"].items()):
        name = f"constant_{number}"
        root.register_buffer(name, _tensor(constant), persistent=False)
        variables[variable] = graph.get_attr(name)
    for variable, word, args, kwargs in program["steps"]:
        function = called(word, args, kwargs)
        given = [_value(a, variables) for a in args], {_word(k): _value(v, variables) for k, v in kwargs.items()}
        variables[variable] = graph.call_function(function, tuple(given[0]), given[1])
    graph.output(_given(program["output"], variables))
    graph.lint()
    return Program(root, graph)


def _word(name: Any) -> str:
    """Check that a name is an identifier, because fx generates Python code from a graph. Raises BundleError."""
    if isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name):
        return name
    raise BundleError(f"the program has the name {name!r}, which is not a plain word.")


def _attach(root: nn.Module, name: str, tensor: Tensor, buffer: bool) -> None:
    """Register a parameter or a buffer under its dotted name."""
    if not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII):
        raise BundleError(f"the program has the name {name!r}, which is not a plain word.")
    *path, key = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if buffer:
        root.register_buffer(key, tensor.clone())
    else:
        root.register_parameter(key, nn.Parameter(tensor.clone(), requires_grad=tensor.is_floating_point()))


def _value(value: Any, variables: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_value(v, variables) for v in value]
    if not isinstance(value, dict):
        return value
    ((word, content),) = value.items()
    if word == "node":
        return variables[content]
    if word == "float":
        return float(content)
    if word == "device":
        if content != "cpu":
            raise BundleError(f"the program has the device {str(content)[:80]!r}, but must be one for the CPU.")
        return torch.device("cpu")
    _, known = _TYPED[word]
    if content not in known:
        raise BundleError(f"the program has the {word} {str(content)[:80]!r}, which no program needs.")
    return known[content]


def _given(value: Any, variables: Mapping[str, fx.Node]) -> Any:
    ((word, content),) = value.items()
    if word == "dict":
        return {_key(key): _given(v, variables) for key, v in content.items()}
    if word in ("list", "tuple"):
        return (list if word == "list" else tuple)(_given(v, variables) for v in content)
    if word == "value" and (content is None or isinstance(content, bool | int | float)):
        return content
    return variables[content]


def _key(key: str) -> str:
    if not re.fullmatch(r"[\w .:/-]+", key, re.ASCII):
        raise BundleError(f"the program has the name {key!r}, which is not a plain word.")
    return key


def _tensor(constant: Mapping[str, Any]) -> Tensor:
    dtype = _value({"dtype": constant["dtype"]}, {})
    content = bytearray(base64.b64decode(constant["data"], validate=True))
    shape = [int(size) for size in constant["shape"]]
    if min(shape, default=0) < 0 or len(content) != math.prod(shape) * dtype.itemsize:
        raise BundleError("the program is damaged: a constant does not have its shape.")
    return torch.frombuffer(content, dtype=dtype).reshape(shape) if content else torch.empty(shape, dtype=dtype)
