"""Run an ONNX model on ONNX Runtime's CPU provider."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from amc.deploy.export import STRUCTURE, check_onnx
from amc.errors import ExportError, first_line
from amc.task import Objective, Split, batches, nested
from amc.task.nested import Feeds, Nested

Inputs = NDArray[Any] | Feeds
"""An array for the model's one input, or arrays by name."""
LARGEST_INPUT = 1 << 30
"""Most bytes of the inputs that a model is measured with."""


def providers() -> list[str]:
    """The execution providers of ONNX Runtime. Latency is always measured on the CPU provider."""
    return list(onnxruntime.get_available_providers())


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Treat denormals as zero in this thread, as the runtime's own threads do, for the duration of the block."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@dataclass(frozen=True)
class SessionSignature:
    """Inputs and outputs of a model."""

    model: str
    """The model's name in messages."""
    inputs: tuple[tuple[str, str, tuple[Any, ...]], ...]
    """Name, type and shape of each input. A dynamic dimension is a name or None."""
    outputs: tuple[str, ...]

    def random_inputs(self, shape: Sequence[int] | None = None, seed: int = 0) -> NDArray[np.float32]:
        """A random input of the model's declared shape, or of ``shape`` (without the batch). Raises ExportError."""
        if len(self.inputs) != 1:
            raise ExportError(f"{self.model} has {len(self.inputs)} inputs; only models with one can be measured.")
        _, kind, declared = self.inputs[0]
        if kind != "tensor(float)":
            raise ExportError(f"the input of {self.model} is {kind}; only float32 can be measured.")
        first, *rest = declared or (1,)
        batch = first if isinstance(first, int) else 1
        if shape is not None:
            if len(shape) != len(rest) or any(
                isinstance(known, int) and known != asked for known, asked in zip(rest, shape, strict=True)
            ):
                raise ExportError(
                    f"{self.model} takes inputs of shape {rest} after the batch, not {list(shape)} as given by the "
                    "first model or --input-size."
                )
            rest = list(shape)
        if not all(isinstance(size, int) for size in rest):
            raise ExportError(
                f"{self.model} takes inputs of shape {rest} after the batch: give sizes with --input-size 3,224,224."
            )
        if not 0 < 4 * math.prod((batch, *rest)) <= LARGEST_INPUT:
            raise ExportError(
                f"{self.model} takes inputs of shape {[batch, *rest]}: they must not be empty, and must have at most "
                f"{LARGEST_INPUT >> 30} GiB."
            )
        return np.random.default_rng(seed).standard_normal((batch, *rest), dtype=np.float32)


class Runner:
    """A session with the options for measuring latency: sequential, all optimisations, denormals as zero."""

    def __init__(self, model: Path | bytes, threads: int = 1, profile: Path | None = None) -> None:
        """``model`` is a path or a file's content. ``profile`` is the path prefix of a file for operators' times."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # errors are exceptions, which have the same text
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._name = "the model" if isinstance(model, bytes) else str(model)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if not isinstance(model, bytes):
            check_onnx(model)
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (the runtime's errors share no base class)
            raise ExportError(f"ONNX Runtime cannot load {self._name}: {reason(first_line(error))}") from None
        # creating a session sets denormals to zero in this thread, which would change torch's results
        torch.set_flush_denormal(False)
        self._inputs = [given.name for given in self._session.get_inputs()] or [""]
        self._names = [output.name for output in self._session.get_outputs()]

    @property
    def signature(self) -> SessionSignature:
        """Inputs and outputs of the model."""
        inputs = tuple((value.name, value.type, tuple(value.shape or ())) for value in self._session.get_inputs())
        return SessionSignature(self._name, inputs, tuple(self._names))

    def inputs(self, shape: Sequence[int] | None = None, seed: int = 0) -> NDArray[np.float32]:
        """A random input of the model's declared shape, or of ``shape`` (without the batch)."""
        return self.signature.random_inputs(shape, seed)

    def end_profiling(self) -> Path:
        """Stop profiling and return the file with the times of all operators in all calls."""
        return Path(self._session.end_profiling())

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """The first output for inputs ``[B, ...]``."""
        return self.outputs(inputs)[0]

    def outputs(self, inputs: Inputs) -> list[NDArray[Any]]:
        """All outputs for inputs ``[B, ...]``: an array, or arrays by name."""
        given = {self._inputs[0]: inputs} if isinstance(inputs, np.ndarray) else nested.under(inputs, self._inputs)
        try:
            found: list[NDArray[Any]] = self._session.run(None, dict(given))
        except Exception as error:  # noqa: BLE001
            raise ExportError(f"ONNX Runtime cannot run {self._name}: {reason(first_line(error))}") from None
        return found

    def structured(self, inputs: Inputs) -> Nested:
        """The outputs in the network's own structure: a tensor, a tuple or a dict of tensors."""
        names = self._names if not self.gives_tensor else ["output"]
        return nested.restored(names, [torch.from_numpy(array) for array in self.outputs(inputs)], "output")

    @property
    def gives_tensor(self) -> bool:
        """Whether the network gives its one output, whatever its name, as a tensor."""
        return gives_tensor(self._session.get_modelmeta().custom_metadata_map, self._names)


def gives_tensor(metadata: Mapping[str, str], outputs: Sequence[str]) -> bool:
    """Whether a file's metadata says that its one output is a tensor, not a dict with its name."""
    return metadata.get(STRUCTURE) == "tensor" and len(outputs) == 1


def reason(message: str) -> str:
    """Shorten the runtime's error message to one line without its codes and the file's name.

    >>> reason("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Unexpected input data type.")
    'Unexpected input data type.'
    """
    message = re.sub(
        r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(Fatal error: )?",
        "",
        (message.splitlines() or [""])[0],
    )
    if message.startswith(("Protobuf parsing failed", "No graph was found")):
        return "it is not an ONNX file."
    return message


class Structured(Protocol):
    """Runs a model: `Runner`, or `amc.latency.confined.ConfinedRunner` for untrusted files."""

    def structured(self, inputs: Inputs) -> Nested:
        """The outputs in the network's own structure."""


def onnx_metric(model: Path | Structured, objective: Objective, split: Split, batch_size: int = 100) -> float:
    """Mean metric over a split of an ONNX file or of a runner."""
    runner, total = Runner(model) if isinstance(model, Path) else model, 0.0
    for inputs, targets in batches(split, batch_size):
        total += float(objective.metric(runner.structured(nested.feeds(inputs)), targets).double().sum())
    return total / len(split)
