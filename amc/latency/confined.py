"""Run an untrusted ONNX file in a separate process with limits on time and memory.

An endless loop, a batch of a million, or a file that crashes the runtime ends only that process; here it is a one-line
error. The process also checks that files with external tensors are inside the model's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from numpy.typing import NDArray

from amc.deploy.export import check_onnx
from amc.errors import ExportError
from amc.latency import confined_process
from amc.latency.session import Inputs, SessionSignature, gives_tensor, reason
from amc.task import nested
from amc.task.nested import Nested

LOAD_SECONDS, CALL_SECONDS, SAMPLE_SECONDS = 120.0, 60.0, 6.0
"""Time limits in seconds: to load a model, for each call, and in addition for each sample of a call."""
MEMORY = 0.5
"""Share of the machine's memory that the process may use."""
_LARGEST_OUTPUT = 4 << 30


class ConfinedRunner:
    """Computes a model's outputs, as `amc.latency.Runner` does. Use it in a ``with`` block. Raises ExportError."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        self._model, self._threads = model, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._timed_out = self._gives_tensor = False
        self.signature = SessionSignature(str(model), (), ())
        """Inputs and outputs of the model; set inside the ``with`` block."""

    def __enter__(self) -> ConfinedRunner:
        check_onnx(self._model)
        memory = int(MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        request = json.dumps({"model": str(self._model.absolute()), "threads": self._threads, "memory": memory})
        command = [sys.executable, "-P", str(Path(confined_process.__file__).resolve()), request]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            description = json.loads(self._exchange(None, LOAD_SECONDS))
            if "error" in description:
                raise ExportError(f"ONNX Runtime cannot load {self._model}: {reason(description['error'])}")
            self.signature = SessionSignature(
                str(self._model),
                tuple((n, t, tuple(s)) for n, t, s in description["inputs"]),
                tuple(description["outputs"]),
            )
            self._gives_tensor = gives_tensor(description.get("metadata", {}), self.signature.outputs)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def outputs(self, inputs: Inputs) -> list[NDArray[Any]]:
        """All outputs for inputs ``[B, ...]``: an array, or arrays by name."""
        arrays: Sequence[Any] = [inputs] if not isinstance(inputs, Mapping) else self._ordered(inputs)
        samples = max((len(array) for array in arrays if array.ndim), default=1)
        answer = self._exchange(confined_process.pack(arrays), CALL_SECONDS + SAMPLE_SECONDS * samples)
        if answer[:1] != b"\0":
            message = answer[1:].decode(errors="replace")
            raise ExportError(f"ONNX Runtime cannot run {self._model}: {reason(message)}")
        try:
            return confined_process.unpack(answer[1:])
        except (ValueError, KeyError, OSError, EOFError):
            raise ExportError(f"the outputs of {self._model} are not arrays of numbers.") from None

    def structured(self, inputs: Inputs) -> Nested:
        """The outputs in the network's own structure: a tensor, a tuple or a dict of tensors."""
        arrays = [torch.from_numpy(array) for array in self.outputs(inputs)]
        names = ["output"] if self._gives_tensor else list(self.signature.outputs)
        return nested.restored(names, arrays, "output")

    def _ordered(self, inputs: Mapping[str, Any]) -> list[Any]:
        names = [name for name, *_ in self.signature.inputs]
        inputs = nested.under(inputs, names)
        if sorted(names) != sorted(inputs):
            raise ExportError(f"{self._model} takes {', '.join(names)}, not {', '.join(inputs)}.")
        return [inputs[name] for name in names]

    def _exchange(self, content: bytes | None, seconds: float) -> bytes:
        """Send ``content``, if any, and return the answer. The process is killed after ``seconds``."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, self._kill_late)
        timer.start()
        try:
            if content is not None:
                confined_process.write(process.stdin, content)
            return confined_process.read(process.stdout, _LARGEST_OUTPUT)
        except ValueError:
            raise ExportError(f"the outputs of {self._model} have more than {_LARGEST_OUTPUT >> 30} GiB.") from None
        except (EOFError, OSError):
            raise ExportError(f"{self._model} {self._failure(seconds, loading=content is None)}") from None
        finally:
            timer.cancel()

    def _kill_late(self) -> None:
        self._timed_out = True
        if self._process is not None:
            self._process.kill()

    def _failure(self, seconds: float, loading: bool) -> str:
        """The reason why the process did not answer."""
        assert self._process is not None
        code = self._process.wait()
        if self._timed_out:
            return f"takes longer than {seconds:.0f} s to {'load' if loading else 'run'} on ONNX Runtime."
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"crashes ONNX Runtime when it is {'loaded' if loading else 'run'} ({how})."

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # closing flushes, which fails when the process has ended
                    if stream is not None:
                        stream.close()
