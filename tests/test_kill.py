"""Killed at any of many random moments, a run comes to the result of one that was not, and repeats next to nothing."""

import ctypes
import errno
import json
import multiprocessing as mp
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from amc.cli import main
from amc.config import from_dict, to_dict

KILLS = int(os.environ.get("AMC_KILLS", "30"))  # CI asks for a hundred
SAME = ("model.onnx", "model.safetensors", "policy.json")


class Warm:
    """Runs forked off `tests/warm.py`."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py")), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.ready = self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(self, folder: Path, stage: int = 0, seconds: float = -1.0, writes: int = -1) -> int:
        """The exit status of a run on a disk with so much room. It is killed, or not at all, so many seconds into the
        stage of that number."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([str(folder), stage, seconds, writes])}\n")
        self._process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    server = Warm(folder)
    try:
        assert server.ready, "tests/warm.py says why"
        assert server.run(folder / "whole") == 0
        yield server, folder / "whole"
    finally:
        server.close()


def stages(folder: Path) -> list[tuple[str, float]]:
    """The stages that have ended in a folder, with their seconds, those of earlier attempts included."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith(b"}")]
    return [(r["name"], r["seconds"]) for r in records if r["kind"] == "stage"]


def test_runs_killed_at_any_moment_come_to_the_same_result(warm, tmp_path: Path):
    """Kills are spread evenly over the stages, and over each stage's time in a run that is not killed."""
    server, whole = warm
    assert server.run(tmp_path / "timed") == 0
    spans = [*stages(tmp_path / "timed"), ("deliver", 0.05)]
    dice, kills, met = random.Random(0), 0, Counter()
    wanted = {name: (whole / name).read_bytes() for name in SAME}
    while kills < KILLS:
        folder, mine, status = tmp_path / f"run{kills}", 0, signal.SIGKILL
        while kills < KILLS and status == signal.SIGKILL:
            number, before = dice.randrange(len(spans)), len(stages(folder))
            status = server.run(folder, number, dice.uniform(0, spans[number][1]))
            if status == signal.SIGKILL:
                kills, mine = kills + 1, mine + 1
                met[spans[len(stages(folder)) - before][0]] += 1
        assert server.run(folder) == 0
        assert {name: (folder / name).read_bytes() for name in SAME} == wanted
        assert not list(folder.rglob("*.tmp"))
        calls = folder.with_suffix(".calls").read_text().splitlines()
        assert len(calls) - len(set(calls)) <= mine
    if KILLS >= 100:
        assert min(met[stage] for stage in ("calibrate", "search", "choose", "fine-tune", "export")) > 0
    print(f"{kills} kills in {dict(met)}")


def test_a_disk_that_is_full_at_any_write_leaves_a_run_that_goes_on(warm, tmp_path: Path):
    server, whole = warm
    wanted = {name: (whole / name).read_bytes() for name in SAME}
    full = 0
    for writes in range(0, 40, 4):
        folder = tmp_path / f"run{writes}"
        status = server.run(folder, writes=writes)
        full += os.waitstatus_to_exitcode(status) == errno.ENOSPC
        assert not list(folder.rglob("*.tmp"))
        lines = (folder / "journal.jsonl").read_bytes() if (folder / "journal.jsonl").exists() else b""
        assert all(json.loads(line) for line in lines.splitlines())
        assert server.run(folder) == 0
        assert {name: (folder / name).read_bytes() for name in SAME} == wanted
    assert full >= 5


def _resumed_without_privileges(folder: Path, said: Path) -> None:
    """Root may write anywhere, unless it gives its capabilities up."""
    version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version_3, nothing) == 0
    with said.open("w") as file:
        sys.stderr = file
        code = main(["search", "--resume", str(folder)])
        file.flush()
        os._exit(code)


def test_a_read_only_folder_is_one_line_and_stays_as_it_was(tmp_path: Path):
    folder = tmp_path / "place/run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(from_dict({"budget": {"flops": "0.5"}}))))
    (folder / "journal.jsonl").write_text("")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for path in (folder / "journal.jsonl", folder):
        path.chmod(0o555)
    try:
        process = mp.get_context("fork").Process(target=_resumed_without_privileges, args=(folder, tmp_path / "said"))
        process.start()
        process.join()
        assert process.exitcode == 2
        assert (tmp_path / "said").read_text().splitlines()[-1].startswith("amc: Permission denied: ")
        assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)
