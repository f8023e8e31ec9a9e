"""Three thousand damaged and hostile inputs (`tests/fuzz`): none is met by a crash, a hang or a traceback."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def fuzzed(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_programs() -> None:
    assert "findings: none" in fuzzed("--kind", "program", "--kind", "operator", "--cases", "800")


def test_files() -> None:
    assert "findings: none" in fuzzed("--kind", "file", "--cases", "800")


def test_commands() -> None:
    assert "findings: none" in fuzzed("--kind", "options", "--kind", "search", "--kind", "batch", "--cases", "900")


def test_models() -> None:
    kinds = ("onnx", "weights", "checkpoint", "policy")
    assert "findings: none" in fuzzed(*(word for kind in kinds for word in ("--kind", kind)), "--cases", "500")
