"""Peak memory of an ONNX model: the memory that loading and running it adds to a separate process.

Run as a script, this file is that process. It imports nothing from amc, to keep the memory before the model small.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CALLS = 3
SECONDS = 120.0


def peak_memory(model: Path, shape: Sequence[int], threads: int = 1) -> int | None:
    """Peak bytes for an input ``[B, ...]``; None where the system does not report it or the process fails."""
    request = json.dumps({"model": str(model.resolve()), "shape": list(shape), "threads": threads})
    command = [sys.executable, "-P", str(Path(__file__).resolve()), request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _resident() -> tuple[int, int]:
    """Current and peak resident memory in bytes (proc(5): VmRSS and VmHWM, in kB)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def _main(argument: str) -> int:
    import numpy as np
    import onnxruntime

    request = json.loads(argument)
    inputs = np.zeros(request["shape"], np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.log_severity_level = 4
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak: imports may have needed more
    before, _ = _resident()
    session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    for _ in range(CALLS):
        session.run(None, {session.get_inputs()[0].name: inputs})
    return max(0, _resident()[1] - before)


if __name__ == "__main__":
    print(_main(sys.argv[1]))
