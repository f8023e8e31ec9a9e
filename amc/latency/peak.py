"""Peak memory of an ONNX model: what loading it and running it add to a process of its own.

Run as a script, this file is that process. It imports nothing of amc, so that little is there before the model.
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
    """Bytes for one input ``[B, ...]``; None where the system does not tell, or the process fails."""
    asked = json.dumps({"model": str(model.resolve()), "shape": list(shape), "threads": threads})
    command = [sys.executable, "-P", str(Path(__file__).resolve()), asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _resident() -> tuple[int, int]:
    """Bytes in memory now, and the most there have been (proc(5): VmRSS and VmHWM, in kB)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024


def _main(asked: str) -> int:
    import numpy as np
    import onnxruntime

    given = json.loads(asked)
    inputs = np.zeros(given["shape"], np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given["threads"]
    options.log_severity_level = 4
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # importing may have taken more for a while
    before, _ = _resident()
    session = onnxruntime.InferenceSession(given["model"], options, providers=["CPUExecutionProvider"])
    for _ in range(CALLS):
        session.run(None, {session.get_inputs()[0].name: inputs})
    return max(0, _resident()[1] - before)


if __name__ == "__main__":
    print(_main(sys.argv[1]))
