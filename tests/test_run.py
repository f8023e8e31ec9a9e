"""Nothing is lost when a run is killed, and nothing is half-written when a disk is full."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amc.cli import main
from amc.deploy.bundle import seal
from amc.errors import BundleError
from amc.runtime import journal as journal_room
from amc.runtime.journal import Journal

SEARCH = ["--flops", "0.5", "--evaluations", "8", "--candidates", "2", "--threads", "1"]
QUICK = [*SEARCH, "--finetune-epochs", "3", "--precision", "float32"]
SAME = ("sites", "proof", "candidates", "pruned")


def start(folder: Path, *options: str) -> subprocess.Popen:
    """The search in a process of its own; what it says goes to a file beside the folder."""
    with folder.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "amc", "search", *(options or (*QUICK, "--out", str(folder)))],
            stdout=subprocess.DEVNULL,
            stderr=log,
            # where the tests run in the background of a script, children would inherit that Ctrl-C is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def said(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def evaluations(folder: Path) -> list[dict]:
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [r for r in records if r["kind"] == "evaluation"]


def comparable(summary: dict) -> dict:
    same = {key: summary[key] for key in SAME}
    return {
        **same,
        **{k: {p: summary[k][p] for p in ("search", "test", "macs", "size")} for k in ("original", "final")},
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole") / "run"
    started = time.monotonic()
    assert start(folder).wait(300) == 0, said(folder)
    return {"summary": comparable(result(folder)), "seconds": time.monotonic() - started}


@pytest.mark.parametrize("attempt", range(1))
def test_a_killed_run_resumes_to_the_same_result(uninterrupted: dict, tmp_path: Path, attempt: int):
    folder = tmp_path / "run"
    process = start(folder)
    begun = folder / "config.yaml"
    while not begun.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(random.Random(attempt).uniform(0.2, 0.75) * uninterrupted["seconds"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = evaluations(folder)
    assert start(folder, "--resume", str(folder)).wait(300) == 0, said(folder)
    assert comparable(result(folder)) == uninterrupted["summary"]
    after = evaluations(folder)
    assert after[: len(before)] == before
    assert not list(folder.glob(".*.tmp"))


def test_ctrl_c_says_how_to_go_on(tmp_path: Path):
    folder = tmp_path / "a run"
    process = start(folder)
    while not (folder / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert said(folder).splitlines()[-1].endswith(f"Go on with: amc search --resume '{folder}'")
    assert "Traceback" not in said(folder)


def test_ctrl_c_during_exec_gives_the_right_exit_code():
    """As while a dataclass is being made: CPython remembers it, and ends by the signal whatever `main` gives."""
    code = """
import os, signal, sys
from amc import cli
cli._main = lambda arguments: exec("os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass", globals())
sys.exit(cli.main([]))
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (found.returncode, "Traceback" in found.stderr) == (130, False), found.stderr


@pytest.mark.parametrize("seed", range(6))
def test_ctrl_c_at_a_random_early_moment_is_one_line(seed: int):
    """From where amc's own code begins, before any library is there, up to the end of the command.

    Until then it is Python that answers, with lines of its own.
    """
    code = f"""
import os, random, signal, sys
left = random.Random({seed}).choice([1, 3, 10, 30, 100, 300, 1000, 3000])
def seen(event, arguments):
    global left
    if event in ("import", "open", "exec", "compile") and signal.getsignal(signal.SIGINT) is not before:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
before = signal.getsignal(signal.SIGINT)
sys.addaudithook(seen)
sys.argv = ["amc", "list", "searchers"]
from amc.__main__ import run
sys.exit(run())
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (found.returncode, found.stderr) in ((0, ""), (130, "amc: stopped.\n"))


PRESS = "os.kill(os.getpid(), signal.SIGINT)\n"
IMPORTING = f"""
class Finder:
    def find_spec(self, name, *_):
        if name == "pydantic":
            try:
                {PRESS}
            except KeyboardInterrupt as error:
                raise RAISED from error
sys.meta_path.insert(0, Finder())
"""
STOPPING = f"""
from amc import cli
def stopped(arguments):
    try:
        {PRESS}
    finally:
        {PRESS}
cli._main = stopped
"""
TELLING = f"""
class Telling:
    def write(self, text):
        sys.stderr = sys.__stderr__
        {PRESS}
sys.stderr = Telling()
"""


@pytest.mark.parametrize(
    "when",
    [
        IMPORTING.replace("RAISED", "KeyboardInterrupt"),
        IMPORTING.replace("RAISED", "ImportError('the C extension')"),
        STOPPING,
        STOPPING + TELLING,
        STOPPING + f"import atexit\natexit.register(lambda: {PRESS.strip()})",
    ],
    ids=["importing", "told as another error", "twice", "three times", "while it ends"],
)
def test_ctrl_c_at_any_moment_is_one_line_and_exit_code_130(when: str):
    found = subprocess.run(
        [sys.executable, "-c", f"import os, signal, sys\nfrom amc.__main__ import run\n{when}\nsys.exit(run())"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (found.returncode, len(found.stderr.splitlines())) == (130, 1), found.stderr
    assert found.stderr.startswith("amc: stopped")


def test_a_full_disk_is_one_line_and_the_journal_stays_whole(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "run"
    real, writes = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert main(["search", *QUICK, "--out", str(folder)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("amc: No space left on device")
    monkeypatch.undo()
    assert not (folder / "result.json").exists()
    assert not list(folder.glob(".*.tmp"))
    with Journal(folder / "journal.jsonl") as journal:
        assert journal.last("run") is not None


def test_a_torn_last_line_is_dropped(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("example", n=1)
    with path.open("ab") as file:
        file.write(b'{"kind": "example", "n": 2')
    with Journal(path) as journal:
        assert [r["n"] for r in journal.records("example")] == [1]
        journal.append("example", n=3)
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 3]


def test_two_runs_cannot_share_a_folder(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(journal_room, "PATIENCE", 0.1)
    with Journal(tmp_path / "journal.jsonl"), pytest.raises(BundleError, match="is in use by another run"):
        Journal(tmp_path / "journal.jsonl")


def test_a_line_that_another_process_is_writing_is_not_taken_for_a_torn_one(tmp_path: Path, monkeypatch):
    path, lock = tmp_path / "journal.jsonl", journal_room.lock_file

    def late(file, path):  # the other one, which has the file, ends its line before it lets go
        with path.open("ab") as other:
            other.write(b'{"kind": "example"}\n')
        lock(file, path)

    monkeypatch.setattr(journal_room, "lock_file", late)
    with Journal(path) as journal:
        assert len(list(journal.records("example"))) == 1
    assert path.read_bytes() == b'{"kind": "example"}\n'


def test_a_mistake_seen_before_any_work_leaves_no_folder(tmp_path: Path, capsys):
    folder = tmp_path / "run"
    assert main(["search", "--flops", "0.01", "--out", str(folder)]) == 2
    assert "the least possible" in capsys.readouterr().err
    assert not folder.exists()


def test_a_damaged_evaluation_is_one_line(tmp_path: Path, capsys):
    folder = tmp_path / "run"
    arguments = ["--flops", "0.5", "--searcher", "uniform", "--evaluations", "1", "--finetune-epochs", "0"]
    assert main(["search", *arguments, "--out", str(folder)]) == 0
    path = folder / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    broken = [{"kind": r["kind"]} if r["kind"] == "evaluation" else r for r in lines if r["kind"] != "done"]
    path.write_text("".join(json.dumps(r) + "\n" for r in broken))
    capsys.readouterr()
    assert main(["search", "--resume", str(folder)]) == 2
    assert "damaged" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_names_python_files_is_not_run_without_trust(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('ran', 'w')\ndef make():\n    return None\n")
    Path("run").mkdir()
    Path("run/config.yaml").write_text("data: {name: 'evil.py:make'}\nbudget: {flops: '0.5'}\n")
    Path("run/result.json").write_text('{"format": "amc-result"}')
    Path("run/model.onnx").write_bytes(b"")
    seal(Path("run"))
    for arguments in (["search", "--resume", "run"], ["evaluate", "run"]):
        assert main(arguments) == 2
        assert "add --trust" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_own_folders_need_no_trust_unless_they_were_changed(tmp_path: Path, monkeypatch, capsys):
    """A code under the user's key is of the configuration, and of where the files are that it names."""
    monkeypatch.chdir(tmp_path)
    Path("reward.py").write_text("def reward(found):\n    return found.metric\n")
    words = [*SEARCH[:3], "1", "--searcher", "uniform", "--finetune-epochs", "0", "--reward", "reward.py:reward"]
    assert main(["search", *words, "--out", "first"]) == 0
    Path("first").rename("run")
    for arguments in (["search", "--resume", "run"], ["evaluate", "run"]):
        assert main(arguments) == 0

    def refused(*arguments: str) -> bool:
        code, told = main(arguments), capsys.readouterr().err
        return code == 2 and "would run reward.py:reward" in told

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "reward.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(elsewhere)  # another file of that name
    for arguments in (["search", "--resume", "../run"], ["evaluate", "../run"]):
        assert refused(*arguments)
    monkeypatch.chdir(tmp_path)
    config = Path("run/config.yaml")
    whole = config.read_text()
    config.write_text(f"{whole}# changed\n")
    assert refused("search", "--resume", "run")
    config.write_text(whole)
    journal = Path("run/journal.jsonl").read_text()
    lines = journal.splitlines(keepends=True)
    without = [line for line in lines if '"signature"' not in line]
    forged = [*without, json.dumps({"kind": "signature", "code": "0" * 64}) + "\n"]
    odd = [*without, json.dumps({"kind": "signature", "code": ["ä"]}) + "\n"]
    for content in (without, forged, odd, [*without, '{"kind": "signature"}\n']):
        Path("run/journal.jsonl").write_text("".join(content))
        assert refused("search", "--resume", "run")
    Path("run/journal.jsonl").write_text(journal)
    assert main(["search", "--resume", "run"]) == 0
    with monkeypatch.context() as patch:
        patch.setenv("AMC_KEY", str(tmp_path / "another"))
        assert refused("search", "--resume", "run")
        assert main(["search", "--resume", "run", "--trust"]) == 0
        assert main(["search", "--resume", "run"]) == 0  # this user has run it now


def test_a_folder_that_names_other_places_is_not_resumed_without_trust(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for place in ("cache: elsewhere", "search: {storage: elsewhere.db, searcher: tpe}"):
        Path("run/config.yaml").write_text(f"{place}\nbudget: {{flops: '0.5'}}\n")
        assert main(["search", "--resume", "run"]) == 2
        assert "add --trust" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.yaml"]


def test_the_users_own_cache_needs_no_trust(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o002)  # as where every user has a group
    try:
        assert main(["search", *SEARCH[:3], "2", "--finetune-epochs", "0.1", "--out", "run", "--cache", "kept"]) == 0
    finally:
        os.umask(before)
    assert main(["search", "--resume", "run"]) == 0
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "another"))
    assert main(["search", "--resume", "run"]) == 0
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "third"))
    capsys.readouterr()
    Path("kept").chmod(0o777)
    assert main(["search", "--resume", "run"]) == 2
    assert "would write into the cache kept: if you trust that, add --trust" in capsys.readouterr().err


@pytest.mark.parametrize(("weights", "warned"), [(["--weights", "random"], True), ([], False)])
def test_an_original_near_chance_is_reported(tmp_path: Path, monkeypatch, capsys, weights: list[str], warned: bool):
    monkeypatch.chdir(tmp_path)
    words = [*SEARCH[:3], "1", "--searcher", "uniform", "--finetune-epochs", "0", "--out", "run", *weights]
    assert main(["search", *words]) == 0
    assert ("warning: the original is right on " in capsys.readouterr().err) is warned


def test_a_shared_study_cannot_be_combined_with_a_limit_on_latency(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--latency", "0.5", "--searcher", "tpe", "--storage", "s.db"]) == 2
    assert "--storage cannot be combined with --latency" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_large_tensors_are_on_huge_pages_unless_told_otherwise(given, found):
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    told = {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    code = """if True:
        import contextlib, os
        from amc.__main__ import run
        with contextlib.suppress(SystemExit):
            run()
        print(os.environ["THP_MEM_ALLOC_ENABLE"])
    """
    shown = subprocess.run([sys.executable, "-c", code, "--version"], env={**environment, **told}, check=True,
                           capture_output=True, text=True)  # fmt: skip
    assert shown.stdout.splitlines()[-1] == found
