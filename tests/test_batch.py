"""A batch is a matrix of runs. Mistakes are reported before it starts, and a failing run stops no other."""

import json
import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from amc.batch import pool
from amc.batch.drive import Failure, Limits, Observer, Outcome, described, drive
from amc.batch.matrix import read_matrix
from amc.batch.plan import plan
from amc.batch.run import Ended
from amc.batch.status import statuses
from amc.batch.worker import keeping_to
from amc.cli import main
from amc.commands.command import NOT_MET
from amc.config import from_dict, to_dict
from amc.errors import BundleError, ConfigError
from amc.reports.batch import Times, batch_rows, read_batch, times
from amc.reports.search_figures import front
from amc.runtime.journal import Journal
from amc.runtime.memory import GIB

FULL = {
    "models": ["resnet8", "torchvision:resnet18"],
    "data": ["digits"],
    "budgets": {"half": {"flops": 0.5}, "third": {"flops": "30%", "params": "100k"}},
    "devices": {
        "phone": {"size": "500KB", "latency": "2ms", "threads": 2, "latency_model": "phone.csv"},
        "board": {"memory": 0.5},
    },
    "searchers": {"tpe": {"evaluations": 9}, "fast": {"searcher": "uniform", "evaluations": 1}},
    "seeds": [0, 1],
    "common": {"finetune": {"epochs": 3}},
    "exclude": [{"model": "resnet8", "device": "board"}, {"searcher": "fast", "seed": 1}],
    "overrides": [{"match": {"searcher": "fast"}, "set": {"finetune": {"epochs": 1}, "search": {"evaluations": 2}}}],
}
TINY = {
    "budgets": {"half": {"flops": "0.5"}},
    "searchers": {"uniform": {"evaluations": 1}},
    "common": {"finetune": {"epochs": 0}, "search": {"recalibrate": "off"}, "data": {"calibration": 64, "search": 50}},
}


def written(folder: Path, values: dict) -> Path:
    path = folder / "batch.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def jobs(folder: Path, values: dict):
    return read_matrix(written(folder, values), str(folder / "out")).jobs()


# The matrix


def test_the_matrix_is_the_product_less_what_is_excluded(tmp_path: Path):
    found = jobs(tmp_path, FULL)
    assert len(found) == 3 * 2 * 3  # model and device; budget; searcher and seed
    assert len({job.name for job in found}) == len(found)
    assert found[0].name == "resnet8--digits--half--phone--tpe--0"
    assert found[0].folder == tmp_path / "out" / found[0].name
    config = found[0].config
    assert (config.model.name, config.budget.flops, config.budget.size) == ("resnet8", "0.5", "500KB")
    assert (config.budget.latency, config.search.latency_model) == ("2ms", "phone.csv")
    assert (config.latency_threads, config.search.searcher, config.search.evaluations) == (2, "tpe", 9)
    assert (config.seed, config.finetune.epochs) == (0, 3)
    last = found[-1]
    assert last.place == {"model": "torchvision-resnet18", "data": "digits", "budget": "third", "device": "board",
                          "searcher": "fast", "seed": "0"}  # fmt: skip
    assert (last.config.model.name, last.config.search.searcher) == ("torchvision:resnet18", "uniform")
    assert (last.config.finetune.epochs, last.config.search.evaluations) == (1, 2)


def test_budgets_in_a_list_get_names(tmp_path: Path):
    found = jobs(tmp_path, {"budgets": [{"flops": 0.5}, {"flops": "20M", "size": "500KB"}]})
    assert [job.name for job in found] == ["flops-0.5", "flops-20M-size-500KB"]


def test_many_budgets_are_advised_to_share_a_search(tmp_path: Path, capsys):
    budgets = [{"flops": share} for share in (0.3, 0.5, 0.7)]
    path = written(tmp_path, {"budgets": budgets, "common": {"search": {"evaluations": 7}}})
    assert main(["batch", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "{searcher: transfer}" in capsys.readouterr().out
    path = written(tmp_path, {"budgets": budgets, "searchers": ["spdy"]})
    assert main(["batch", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "{searcher: transfer}" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"modles": ["resnet8"]}, "unknown key 'modles'. Did you mean 'models'?"),
        ({}, "there is no matrix"),
        ({"models": []}, "models is empty"),
        ({"models": "resnet8"}, "must be a list"),
        ({"models": ["resnet8", "resnet8"]}, "there are two entries with the name 'resnet8'"),
        ({"models": {"a b": {}}}, "the name 'a b' must consist of letters"),
        ({"models": [{"name": "resnet8"}]}, "has no name"),
        ({"models": {"a": {"nme": "resnet8"}}}, "unknown key 'model.nme'. Did you mean 'name'?"),
        ({"budgets": {"a": {"flop": 1}}}, "unknown key 'budget.flop'. Did you mean 'flops'?"),
        ({"devices": {"a": {"thread": 1}}}, "unknown key 'devices.a.thread'. Did you mean 'threads'?"),
        ({"devices": {"d": {"flops": 1}}, "budgets": {"b": {"flops": 0.5}}}, "both the device 'd' and another entry"),
        ({"seeds": ["x"]}, "seed is 'x', but must be a whole number"),
        ({"seeds": [0], "exclude": [{"sead": 0}]}, "unknown key 'exclude.sead'. Did you mean 'seed'?"),
        ({"seeds": [0], "exclude": [{"seed": 1}]}, "there is no seed '1'"),
        ({"seeds": [0], "exclude": [{"seed": 0}]}, "nothing is left to run"),
        ({"seeds": [0], "exclude": [{}]}, "an empty rule would match every run"),
        ({"seeds": [0], "overrides": [{"match": {"seed": 0}}]}, "must have 'match' and 'set'"),
        ({"seeds": [0], "overrides": [{"match": {"seed": 0}, "set": {"sede": 1}}]}, "unknown key 'sede'"),
        ({"seeds": [0], "retries": -1}, "retries is -1"),
        ({"seeds": list(range(201))}, "a matrix of 201 runs (201 seed): add --yes if that is intended"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, capsys, values: dict, told: str):
    assert main(["batch", str(written(tmp_path, values)), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_million_runs_ask_first_and_at_once(tmp_path: Path, capsys):
    values = {"seeds": list(range(1000)), "budgets": [{"flops": f"{i}k"} for i in range(1, 1001)]}
    assert main(["batch", str(written(tmp_path, values))]) == 2
    assert "a matrix of 1,000,000 runs (1,000 budget × 1,000 seed)" in capsys.readouterr().err


def test_a_key_that_is_there_twice_is_not_lost(tmp_path: Path, capsys):
    path = tmp_path / "b.yaml"
    path.write_text("devices:\n  phone: {size: 1MB}\n  phone: {size: 2MB}\n")
    assert main(["batch", str(path)]) == 2
    assert "the key 'phone' is there twice" in capsys.readouterr().err


# What is there already


def begin(folder: Path, job, *records: dict) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(job.config)))
    with Journal(folder / "journal.jsonl") as journal:
        for record in records:
            journal.append(**record)


def test_estimates_come_from_runs_that_are_alike_and_are_unknown_without(tmp_path: Path):
    matrix = {"models": ["resnet8", "resnet20"], "searchers": ["uniform", "tpe"], "seeds": [0, 1, 2],
              "common": {"budget": {"flops": 0.5}}}  # fmt: skip
    found = {job.name: job for job in jobs(tmp_path, matrix)}
    for seed, seconds in (("0", 10.0), ("1", 20.0)):
        job = found[f"resnet8--tpe--{seed}"]
        begin(job.folder, job, {"kind": "stage", "name": "search", "seconds": seconds}, {"kind": "done"})
    job = found["resnet8--tpe--2"]
    begin(job.folder, job, {"kind": "stage", "name": "inspect", "seconds": 4.0})
    planned = {p.job.name: p for p in plan(list(found.values()))}
    assert (planned["resnet8--tpe--0"].state, planned["resnet8--tpe--0"].seconds) == ("done", 10.0)
    assert (planned["resnet8--tpe--2"].state, planned["resnet8--tpe--2"].seconds) == ("begun", 11.0)
    other = planned["resnet8--uniform--0"]
    assert (other.state, other.seconds, other.like) == ("new", 15.0, 2)
    assert planned["resnet20--tpe--0"].seconds is None


def test_a_folder_begun_with_another_configuration_is_refused(tmp_path: Path):
    job = jobs(tmp_path, TINY)[0]
    begin(job.folder, job)
    changed = replace(job, config=job.config.replace(seed=7))
    with pytest.raises(BundleError, match=r"started with another configuration \(seed was 0, now 7\)"):
        plan([changed])
    assert plan([replace(job, config=job.config.replace(threads=7))])[0].state == "begun"
    with pytest.raises(BundleError, match=r"latency_threads was 1, now 2"):
        plan([replace(job, config=job.config.replace(latency_threads=2))])


def test_status_shows_waiting_stopped_running_failed_and_done(tmp_path: Path):
    names = ("waiting", "stopped", "running", "failed", "done")
    with Journal(tmp_path / "batch.jsonl") as journal:
        journal.append("batch", runs=[{"name": name, "place": {"seed": name}} for name in names])
        journal.append("end", name="failed", attempt=1, error="out of memory", last=True)
    for name in names[1:]:
        with Journal(tmp_path / name / "journal.jsonl") as journal:
            journal.append("stage", name="inspect", seconds=2.0)
            for time in (60.0, 62.0, 64.0):
                journal.append("evaluation", choice=[4], costs={}, seconds=1.0, error="none", time=time)
            if name == "done":
                journal.append("done")
    (tmp_path / "running/progress.json").write_text(
        json.dumps(
            {
                "stage": "search",
                "share": 0.5,
                "note": "",
                "began": 0.0,
                "time": 0.0,
                "pid": os.getpid(),
                "host": os.uname().nodename,
            }
        )
    )
    found = {s.name: s for s in statuses(tmp_path)}
    assert {name: s.state for name, s in found.items()} == {name: name for name in names}
    assert (found["running"].stage, found["running"].evaluations, found["running"].rate) == ("search", 3, 30.0)
    assert found["failed"].note == "out of memory"
    assert found["done"].seconds == 2.0


def test_failures_of_an_earlier_command_are_tried_again(tmp_path: Path):
    runs = [{"name": "a", "place": {"seed": "a"}}]
    with Journal(tmp_path / "batch.jsonl") as journal:
        journal.append("batch", runs=runs)
        journal.append("end", name="a", attempt=1, error="out of memory", last=True)
        assert [s.state for s in statuses(tmp_path)] == ["failed"]
        assert [n.reason for n in read_batch(tmp_path)] == ["out of memory"]
        journal.append("batch", runs=runs)
        assert [s.state for s in statuses(tmp_path)] == ["waiting"]
        assert [n.reason for n in read_batch(tmp_path)] == [""]
        journal.append("batch", runs=[{"place": {}}])
        with pytest.raises(BundleError, match="damaged"):
            statuses(tmp_path)


def test_a_run_keeps_to_its_share_of_the_memory():
    config = from_dict({})
    assert keeping_to(4 * GIB, config).memory_limit == 2
    assert keeping_to(4 * GIB, config.replace(memory_limit=1.5)).memory_limit == 1.5
    assert keeping_to(4 * GIB, config.replace(memory_limit=9)).memory_limit == 2


# The end of a run


def test_exit_codes_are_described_clearly():
    assert pool.describe_exit(-signal.SIGKILL) == Failure(
        "killed (SIGKILL), which the system does when memory runs out", True
    )
    assert pool.describe_exit(-signal.SIGSEGV).reason == "crashed (SIGSEGV)"
    assert described(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")) == Failure(
        "out of memory: DefaultCPUAllocator: can't allocate memory: you tried 9 bytes", False
    )
    assert described(ConfigError("no")) == Failure("no", False)
    assert described(OSError(28, "No space left on device", "f")).again
    assert described(ZeroDivisionError("x")) == Failure("ZeroDivisionError: x", True)


def test_runs_stop_when_the_batch_is_killed():
    context = mp.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_patient, args=(ours, theirs))
    process.start()
    theirs.close()
    time.sleep(0.1)
    assert process.is_alive()
    ours.close()  # as when the process that reads is killed
    process.join(10)
    assert process.exitcode == 3


def _patient(ours, theirs) -> None:
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under a shell's &
    try:
        pool.run_watched(lambda pipe, log: time.sleep(60), (), theirs, None)
    except KeyboardInterrupt:
        os._exit(3)


def test_times_are_those_of_the_limited_device():
    here = {"ratio": {"value": 0.6}, "prediction": {"model": "profile", "original_ms": 2.1}}
    result = {"original": {"latency_ms": 2.0}, "final": {"latency_ms": 1.2}, "latency": here,
              "proof": [{"resource": "latency", "exported": 1.3}]}  # fmt: skip
    assert times(result) == Times(2.0, 1.2, 0.6)
    phone = {**here, "prediction": {"model": "command:phone", "original_ms": 20.0}}
    assert times({**result, "latency": phone, "proof": [{"resource": "latency", "exported": 13.0}]}) == Times(
        20, 13, 0.65
    )
    assert times({**result, "latency": None, "proof": []}) == Times(2.0, 1.2, None)


def test_the_front_has_no_dominated_networks():
    assert front([(3, 0.1), (1, 0.5), (2, 0.6), (2, 0.3), (4, 0.1)]) == [1, 3, 0]


PLUGIN = """
import os, signal, pathlib
from amc.task.models import build_model, load_model
def make():
    return load_model("resnet8", None, 1, 10, "digits")
def crash(evaluation):
    os.kill(os.getpid(), signal.SIGKILL)
def crash_once(evaluation):
    try:
        pathlib.Path("crashed").touch(exist_ok=False)
    except FileExistsError:
        return evaluation.metric
    os.kill(os.getpid(), signal.SIGSEGV)
def hungry(evaluation):
    raise MemoryError("no more")
"""


def test_a_batch_whose_runs_fail_in_every_way(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    rewards = {"good": "error", "crash": "mine.py:crash", "once": "mine.py:crash_once", "hungry": "mine.py:hungry"}
    searchers = {name: {"searcher": "uniform", "evaluations": 1, "reward": r} for name, r in rewards.items()}
    path = written(tmp_path, {**TINY, "searchers": searchers})
    arguments = ["batch", str(path), "--out", "out", "--workers", "2", "--trust"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert (
        "half--crash: failed: killed (SIGKILL), which the system does when memory runs out; it will be tried again"
        in captured.err
    )
    assert "half--once: failed: crashed (SIGSEGV); it will be tried again" in captured.err
    assert "failed: half--crash: killed (SIGKILL)" in captured.out
    assert "failed: half--hungry: out of memory: no more" in captured.out
    assert "2 of 4" in captured.out
    done = {n.name: n.met for n in read_batch(tmp_path / "out") if n.result is not None}
    assert done == {"half--good": True, "half--once": True}
    page = Path("out/batch.html").read_text()
    assert "half--good/report.html" in page
    assert "out of memory" in page
    starts = [r for r in map(json.loads, Path("out/batch.jsonl").read_text().splitlines()) if r["kind"] == "start"]
    assert sorted(r["name"] for r in starts) == sorted(
        ["half--good", "half--crash", "half--crash", "half--once", "half--once", "half--hungry"]
    )
    rows = batch_rows(read_batch(tmp_path / "out"))
    assert [row.best.name in done for row in rows if row.best] == [True]

    # the same command again: what is done is not done again
    before = Path("out/half--good/journal.jsonl").read_bytes()
    assert main([*arguments, "--retries", "0"]) == 1
    assert Path("out/half--good/journal.jsonl").read_bytes() == before
    assert "half--good" not in capsys.readouterr().err
    assert main(["status", "out"]) == 0
    assert "4 runs: 2 failed, 2 done" in capsys.readouterr().out


class Watcher(Observer):
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def test_a_run_over_its_memory_limit_ends_with_a_clear_message(tmp_path: Path):
    watcher, limits = Watcher(), Limits(threads=1, memory=100 << 20)
    drive(jobs(tmp_path, TINY), 1, pool.Processes(limits, tmp_path / "logs"), watcher)
    (outcome,) = watcher.outcomes  # it is not tried again
    assert outcome.failure.reason.startswith("out of memory: ")


def test_a_missed_latency_limit_has_its_own_message_and_exit_code(tmp_path, monkeypatch, capsys):
    bundle = json.loads((Path(__file__).parent / "data" / "bundle-1" / "result.json").read_text())
    path, out = written(tmp_path, TINY), tmp_path / "out"
    names = [job.name for job in jobs(tmp_path, TINY)]
    proof = {"resource": "latency", "unit": "ms", "limit": 1.0, "exported": 2.0, "met": False, "how": "measured"}

    def ran(found, folder: Path, *_) -> Ended:
        with Journal(folder / "batch.jsonl") as journal:
            journal.append("batch", runs=[{"name": name, "place": {"budget": "half"}} for name in names], time=0.0)
        for name in names:
            (folder / name).mkdir()
            result = {**bundle, "proof": [*bundle["proof"], proof]}
            (folder / name / "result.json").write_text(json.dumps(result))
        return Ended(folder, len(names), failed)

    monkeypatch.setattr("amc.batch.run.run_batch", ran)
    failed: dict[str, str] = {}
    assert main(["batch", str(path), "--out", str(out)]) == NOT_MET
    assert f"NOT met: {names[0]}: 2 ms of at most 1 ms" in capsys.readouterr().out
    failed = {"another": "it crashed"}  # which is worse
    shutil.rmtree(out)
    assert main(["batch", str(path), "--out", str(out)]) == 1


def test_runs_that_cannot_work_are_refused_before_anything_starts(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {**TINY, "budgets": {"half": {"flops": "0.5"}, "tiny": {"size": "1KB"}}})
    assert main(["batch", str(path), "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert "run tiny--uniform: the budget cannot be reached: the least possible is" in told
    assert not Path("out/half--uniform").exists()


def test_ctrl_c_stops_every_run_and_the_same_command_goes_on(tmp_path: Path):
    path = written(tmp_path, {**TINY, "searchers": {"random": {"evaluations": 100_000}}})
    command = [sys.executable, "-m", "amc", "batch", str(path), "--out", str(tmp_path / "out")]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            command, stderr=said, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
        )
    progress = tmp_path / "out/half--random/progress.json"
    while process.poll() is None and not (progress.exists() and b'"search"' in progress.read_bytes()):
        time.sleep(0.05)
    worker = json.loads(progress.read_text())["pid"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    told = (tmp_path / "said").read_text()
    assert "Go on with: the same command again" in told
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert [s.state for s in statuses(tmp_path / "out")] == ["stopped"]
