"""An ONNX model on ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from amc.errors import ExportError


class Runner:
    """A session that is set up as latency is measured: sequential, all optimisations, denormals as zero."""

    def __init__(self, model: Path | bytes, threads: int = 1) -> None:
        """``model`` is a file, or its content."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (the runtime's errors share no base class)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            name = "the model" if isinstance(model, bytes) else str(model)
            raise ExportError(f"ONNX Runtime cannot load {name}: {reason}") from None
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for inputs ``[B, ...]``."""
        output: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return output
