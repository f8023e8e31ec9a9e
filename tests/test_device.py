"""A run for a device that a command measures. This one takes a millisecond for every 100 kB of the model."""

import json
import sys
from pathlib import Path

import pytest

from amc.cli import main
from amc.runtime.journal import Journal

SCRIPT = """#!{python} -S
import os, sys
with open("calls", "a") as calls:
    calls.write("x")
if os.path.getsize("calls") > {most}:
    sys.exit("the device is gone")
print(os.path.getsize(sys.argv[1]) / 1e5)
"""


def device(most=10**6):
    path = Path("measure")
    path.write_text(SCRIPT.format(python=sys.executable, most=most))
    path.chmod(0o755)


def search(*more):
    return main(["search", "--latency", "0.5", "--latency-model", "command:./measure {onnx}", "--searcher", "random",
                 "--evaluations", "3", "--finetune-epochs", "0", "--out", "run", *more])  # fmt: skip


def test_the_limit_holds_on_the_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    device()
    assert search("--cache", "cache") == 0
    assert "measured by command:measure {onnx}" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (proof,) = result["proof"]
    original = (tmp_path / "run" / "original.onnx").stat().st_size
    assert proof["limit"] == pytest.approx(0.5 * original / 1e5)
    assert proof["exported"] == pytest.approx((tmp_path / "run" / "model.onnx").stat().st_size / 1e5)
    assert proof["met"]
    assert proof["exported"] > 0.8 * proof["limit"]
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        keys = [record["key"] for record in journal.records("device-latency")]
    assert len(set(keys)) == len(keys)
    assert (tmp_path / "calls").stat().st_size == 3 * len(keys)  # runs that agree
    assert str(tmp_path) not in (tmp_path / "run" / "result.json").read_text()

    # another run asks the device for the original only: it is what it was, and so is all that it took
    assert search("--cache", "cache", "--out", "again") == 0
    assert (tmp_path / "calls").stat().st_size == 3 * len(keys) + 3


def test_a_failing_device_ends_the_run_and_keeps_its_measurements(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    device(most=12)
    assert search() == 2
    error = capsys.readouterr().err
    assert "exit code 1: the device is gone" in error
    assert "Traceback" not in error
    device()
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "another"))
    assert main(["search", "--resume", "run"]) == 2
    assert "would run command:./measure {onnx}: if you trust that, add --trust" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--resume", "run"]) == 0
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        networks = len(list(journal.records("device-latency")))
    assert (tmp_path / "calls").stat().st_size == 3 * networks + 1  # only the call that failed was made again


NOISY = """#!{python} -S
import os, random, sys
print(os.path.getsize(sys.argv[1]) / 1e5 * (1 + {jitter} * random.random()))
"""


def test_a_limit_is_met_on_a_noisy_device(tmp_path, monkeypatch, capsys):
    """Every measurement is up to 40 % too slow. The delivered network is within the limit, and not far below."""
    monkeypatch.chdir(tmp_path)
    path = Path("measure")
    path.write_text(NOISY.format(python=sys.executable, jitter=0.4))
    path.chmod(0o755)
    assert search() in (0, 3)
    sizes = [(tmp_path / "run" / name).stat().st_size for name in ("model.onnx", "original.onnx")]
    assert 0.35 < sizes[0] / sizes[1] < 0.55
