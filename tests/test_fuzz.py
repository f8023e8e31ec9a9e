"""Three thousand damaged and hostile inputs (`tests/fuzz`): none is met by a crash, a hang or a traceback."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


CASES = {
    "program": 400, "operator": 400, "file": 800, "options": 300, "search": 300, "batch": 300,
    "onnx": 125, "weights": 125, "checkpoint": 125, "policy": 125,
}  # fmt: skip


def test_no_case_has_a_finding() -> None:
    """All kinds in one run, as most of the time of a short one is importing torch and exporting programs."""
    words = [word for kind, count in CASES.items() for word in ("--kind", f"{kind}={count}")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3000 cases in" in done.stdout
    assert "findings: none" in done.stdout
