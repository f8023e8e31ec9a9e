"""Latency of a policy during the search: the original's ONNX file with its tensors cut, run beside the original.

Nothing is exported anew: the file's tensors are cut along the same axes as the network's, which takes milliseconds.
The weights are the original's, since their values do not matter to time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from amc.channels import Kept
from amc.latency.measure import WARMUP, time_call
from amc.latency.session import Inputs, Runner, denormals_as_zero
from amc.resources import FileLayout

ROUNDS = 30


class LatencyProbe:
    """Milliseconds of one inference of any policy, relative to the original measured in the same rounds."""

    def __init__(
        self,
        original: Path,
        layout: FileLayout,
        inputs: Inputs,
        threads: int = 1,
        original_ms: float | None = None,
    ) -> None:
        """``original_ms``: what the original takes, where an earlier session has measured it."""
        self._proto = onnx.load(str(original))
        self._tensors = [numpy_helper.to_array(t) for t in self._proto.graph.initializer]
        self._layout, self._inputs, self._threads = layout, inputs, threads
        self._original = Runner(original, threads)
        with denormals_as_zero():
            for _ in range(WARMUP):
                self._original(inputs)
            self.original_ms = original_ms or min(time_call(self._original, inputs, 1) for _ in range(3 * ROUNDS))

    def cut(self, kept: Kept) -> bytes:
        """The ONNX model whose sites keep these channels."""
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
        data: bytes = proto.SerializeToString()
        return data

    def __call__(self, kept: Kept) -> float:
        """Milliseconds of the policy that keeps these channels. Raises ExportError where the cut file does not run."""
        return self.time(self.cut(kept))

    def time(self, model: bytes) -> float:
        """Milliseconds of an ONNX model: the ratio of the two minima, times what the original takes."""
        runner = Runner(model, self._threads)
        with denormals_as_zero():
            for _ in range(WARMUP):
                runner(self._inputs)
            both = [
                (time_call(runner, self._inputs, 1), time_call(self._original, self._inputs, 1)) for _ in range(ROUNDS)
            ]
        mine, original = (min(times) for times in zip(*both, strict=True))
        return float(self.original_ms * mine / original)
