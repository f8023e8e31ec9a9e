"""Latency of a policy during the search: cut the tensors of the original's ONNX file and run it beside the original.

This avoids an export: the file's tensors are cut along the same axes as the network's, which takes milliseconds. The
weights keep the original's values, since latency does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from amc.graph.channels import Kept
from amc.latency.measurement import LEAST_MS, WARMUP, time_call
from amc.latency.operators import activations, profile
from amc.latency.reference import Reference, Timing, timed
from amc.latency.session import Inputs, Runner, denormals_as_zero
from amc.operators.branches import remove
from amc.space.file_size import FileLayout

ROUNDS = 20


class LatencyProbe:
    """Times any policy beside the original, and its operators."""

    def __init__(
        self,
        original: Path,
        layout: FileLayout,
        inputs: Inputs,
        threads: int = 1,
        original_ms: float | None = None,
    ) -> None:
        """``original_ms``: milliseconds of the original, if an earlier session has measured it."""
        self._proto = _cuttable(onnx.load(str(original)), inputs)
        self._tensors = [numpy_helper.to_array(t) for t in self._proto.graph.initializer]
        self._layout, self._inputs, self._threads = layout, inputs, threads
        runner = Runner(original, threads)
        with denormals_as_zero():
            fastest = min(time_call(runner, inputs, 1) for _ in range(WARMUP))
        self._calls = max(1, int(np.ceil(LEAST_MS / fastest)))
        self._reference = Reference(timed(runner, inputs, self._calls))
        self._file = original
        self.original_ms = original_ms or self._reference.usual.ms
        """Milliseconds of a ratio of 1."""

    def cut(self, kept: Kept) -> bytes:
        """The ONNX model in which sites keep only these channels."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        groups = {}
        for stored, array, tensor in zip(self._layout.tensors, self._tensors, proto.graph.initializer, strict=True):
            changed = array
            for dim, axis in enumerate(stored.axes):
                if axis is not None:
                    changed = np.take(changed, axis.kept(kept), axis=dim)
            if changed is not array:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
                if stored.per_group:
                    groups[tensor.name] = changed.shape[0] // stored.per_group
        for node in proto.graph.node:
            if node.op_type == "Conv" and node.input[1] in groups:
                next(a for a in node.attribute if a.name == "group").i = groups[node.input[1]]
        remove(proto, [branch for branch in self._layout.branches if not len(kept[branch.site])])
        data: bytes = proto.SerializeToString()
        return data

    def compare(self, model: bytes, rounds: int = ROUNDS) -> Timing:
        """Time an ONNX model beside the original."""
        return self._reference.compare(timed(Runner(model, self._threads), self._inputs, self._calls), rounds)

    def compare_with_new_session(self, model: bytes) -> Timing:
        """Time an ONNX model beside a new session of the original, since sessions differ by a few per cent."""
        call = timed(Runner(self._file, self._threads), self._inputs, self._calls)
        reference = Reference(call, self._reference.usual)
        return reference.compare(timed(Runner(model, self._threads), self._inputs, self._calls), ROUNDS)

    def profile(self, model: bytes, known: Mapping[str, int]) -> NDArray[np.float64]:
        """Milliseconds of every operator of an ONNX model, see `amc.latency.operators`."""
        return profile(model, self._inputs, known, self._reference, self._threads)


def _cuttable(proto: Any, inputs: Inputs) -> Any:
    """Replace every Reshape to ``[batch, width]`` by Flatten, which does the same without a fixed width."""
    shapes = activations(proto, inputs)
    for node in proto.graph.node:
        before, after = (shapes.get(name, []) for name in (node.input[0] if node.input else "", node.output[0]))
        if node.op_type == "Reshape" and len(after) == 2 and before[:1] == after[:1]:
            node.CopyFrom(onnx.helper.make_node("Flatten", node.input[:1], node.output, name=node.name, axis=1))
    return proto
