"""Find the operators of an ONNX model that depend on the policy, and time them with ONNX Runtime's profiler.

One profiled session gives the times of all operators, so a model of operators needs far fewer networks than a model of
whole networks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from amc.graph.channels import length_of
from amc.latency.measurement import WARMUP
from amc.latency.reference import Reference
from amc.latency.session import Inputs, Runner, denormals_as_zero
from amc.space.file_size import FileLayout, StoredTensor
from amc.task import nested

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Line = tuple[Ints, int]
"""Slopes ``[S]`` and constant of a length that is linear in the widths: ``slopes @ w + constant``."""

RUNS = 24
"""Undisturbed runs under the profiler."""
BETWEEN = 4
"""Profiled runs between two calls of the original."""


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator with weights, together with the operators after it up to the next one with weights."""

    name: str
    kind: str
    """Operators of one kind do the same computation on the same shapes, so they share a table of times."""
    inputs: Line
    outputs: Line
    branch: int = -1
    """Site of the removable residual branch that contains the operator; -1 for none. It is removed at width 0."""


def operators(proto: Any, layout: FileLayout, sites: int, inputs: Inputs) -> list[Operator]:
    """The operators with weights in the file's order; ``inputs`` give the shapes of activations."""
    stored = {t.name: s for t, s in zip(proto.graph.initializer, layout.tensors, strict=True)}
    shapes = activations(proto, inputs)
    readers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    branches = {name: branch.site for branch in layout.branches for name in branch.dead}
    found = []
    for node in proto.graph.node:
        tensors = [stored[name] for name in node.input if name in stored and stored[name].dims]
        weight = max(tensors, key=lambda t: len(t.dims), default=None)
        if weight is None or not (
            any(a is not None for a in weight.axes) or node.op_type in ("Conv", "Gemm", "MatMul")
        ):
            continue
        positions = shapes[node.output[0]][2:] if node.output[0] in shapes else None
        description = [node.op_type, sorted(_attributes(node)), positions, list(weight.dims),
                sorted(readers.get(node.output[0], []))]  # fmt: skip
        kind = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:8]
        name = f"{node.op_type} {'x'.join(map(str, weight.dims))} {kind}"
        inside = branches.get(node.output[0], -1)
        found.append(Operator(node.output[0], name, *_sides(node, weight, sites), inside))
    return found


def _attributes(node: Any) -> Iterator[tuple[str, str]]:
    for attribute in node.attribute:
        if attribute.name == "group":
            yield "group", str(attribute.i > 1)
        elif not attribute.HasField("t"):
            yield attribute.name, str(onnx.helper.get_attribute_value(attribute))


def activations(proto: Any, inputs: Inputs) -> dict[str, list[int]]:
    """Dimensions of every activation that ONNX shape inference finds when the model is run on ``inputs``."""
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    given = {} if isinstance(inputs, np.ndarray) else nested.under(inputs, [value.name for value in own.graph.input])
    for value in own.graph.input:
        array = inputs if isinstance(inputs, np.ndarray) else given[value.name]
        for dim, size in zip(value.type.tensor_type.shape.dim, array.shape, strict=True):
            dim.ClearField("dim_param")
            dim.dim_value = size
    for value in own.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(own, data_prop=True).graph
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}


def _sides(node: Any, weight: StoredTensor, sites: int) -> tuple[Line, Line]:
    """Numbers of input and output channels of an operator, from the axes of its weight."""
    lines = [length_of(axis, size, sites) for axis, size in zip(weight.axes, weight.dims, strict=True)]
    one: Line = (np.zeros(sites, np.int64), 1)
    if len(lines) == 1:
        return one, lines[0]
    transposed = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    )
    outputs, inputs = (lines[1], lines[0]) if transposed else (lines[0], lines[1])
    return inputs, outputs


class Named(Protocol):
    """An operator by the name of its first output."""

    @property
    def name(self) -> str: ...


def names(proto: Any, found: Sequence[Named]) -> dict[str, int]:
    """Map every name that the runtime may give a fused operator to its index: its node's and its tensors' names."""
    place = {op.name: i for i, op in enumerate(found)}
    readers: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    known: dict[str, int] = {}
    for node in proto.graph.node:
        if node.output[0] in place:
            index = place[node.output[0]]
            if node.name:
                known.setdefault(node.name, index)
            here = node
            while True:
                known.setdefault(here.output[0], index)
                after = readers.get(here.output[0], [])
                if len(after) != 1 or after[0].output[0] in place:
                    break
                here = after[0]
    return known


def profile(model: bytes, inputs: Inputs, known: Mapping[str, int], reference: Reference, threads: int = 1) -> Floats:
    """Milliseconds of every operator ``[max(known) + 1]``: the mean of the faster half of the undisturbed runs."""
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(model, threads, profile=Path(folder, "p"))
        with denormals_as_zero():
            for _ in range(WARMUP):
                runner(inputs)
            repeats = reference.interleaved(lambda: _repeat(runner, inputs), RUNS // BETWEEN)
            bunches = [undisturbed for _, undisturbed in repeats]
        runs = read_events(runner.end_profiling().read_bytes(), known)[WARMUP:]
    counts = np.repeat(bunches, BETWEEN)
    if counts.sum() < RUNS / 4:
        counts[:] = True
    times = np.sort(runs[counts], axis=0)
    found: Floats = times[: max(1, len(times) // 2)].mean(0)
    return found


def _repeat(runner: Runner, inputs: Inputs) -> None:
    for _ in range(BETWEEN):
        runner(inputs)


def read_events(content: bytes, known: Mapping[str, int]) -> Floats:
    """Parse the runtime's profile: milliseconds ``[runs, operators]``.

    Other nodes, such as changes of layout, are added to the next known operator.
    """
    count = max(known.values()) + 1
    runs, now, waiting, last = [], np.zeros(count), 0.0, 0
    for event in json.loads(content):
        name = event.get("name", "")
        if name == "model_run":
            now[last] += waiting
            runs.append(now)
            now, waiting, last = np.zeros(count), 0.0, 0
        elif name.endswith("_kernel_time"):
            own = name.removesuffix("_kernel_time")
            place = known.get(own, known.get(own.removesuffix("_nchwc")))
            waiting += event["dur"]
            if place is not None:
                now[place] += waiting
                waiting, last = 0.0, place
    return np.array(runs) / 1e3
