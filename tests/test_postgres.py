"""Several processes on one search, through a real PostgreSQL server that the test starts as an unprivileged user."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from amc.envs.toy import toy_problem
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem, StudyLocation
from amc.evaluation.score import Score
from amc.search import load_searcher, study

pytest.importorskip("psycopg2", reason="there is no PostgreSQL driver: pip install psycopg2-binary")


def programs() -> Path | None:
    """Where PostgreSQL's programs are; Debian does not put them on the path."""
    found = shutil.which("initdb")
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *([Path(found).resolve().parent] if found else [])]
    return folders[-1] if folders else None


@pytest.fixture(scope="module")
def server():
    """The URL of a database of its own."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="amc-postgres-", dir="/tmp"))  # a socket's path must be short
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    quiet = {"stdout": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run(
        [where / "initdb", "-D", folder / "data", "-U", "amc", "-A", "trust", "--no-sync"], check=True, **quiet
    )
    settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([where / "postgres", "-D", folder / "data", *settings], stderr=log, **quiet)
    for _ in range(100):
        if subprocess.run([where / "pg_isready", "-h", folder, "-q"], check=False).returncode == 0:
            break
        time.sleep(0.1)
    yield f"postgresql+psycopg2://amc@/postgres?host={folder}"
    process.send_signal(signal.SIGQUIT)
    process.wait(20)
    shutil.rmtree(folder)


def search(url: str, name: str, evaluations: int, pipe, hang_at: int = -1) -> None:
    """Work on the study; tell every policy that is really evaluated; hang in one evaluation where asked to."""
    study.HEARTBEAT, study.GRACE = 1, 3
    toy, _ = toy_problem(sites=4)
    done = 0

    def score(choice) -> Score:
        nonlocal done
        pipe.send(choice)
        done += 1
        time.sleep(600 if done == hang_at else 0.02)
        return toy.backend.score(choice)

    place = StudyLocation(url, name, "same", shared=True)
    problem = Problem(toy.space, toy.features, FunctionBackend(score, toy.site_error), study=place)
    load_searcher("tpe")(problem, evaluations, 0)
    pipe.send([e.choice for e in problem.evaluations])


def start(*arguments):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=search, args=(*arguments[:3], theirs, *arguments[3:]))
    process.start()
    theirs.close()
    return process, ours


def heard(pipe) -> list:
    """Everything that a process has told until it ended."""
    told = []
    try:
        while True:
            told.append(pipe.recv())
    except EOFError:
        return told


def test_two_processes_share_one_study_and_evaluate_nothing_twice(server):
    workers = [start(server, "shared", 16) for _ in range(2)]
    told = [heard(pipe) for _, pipe in workers]
    for process, _ in workers:
        process.join(30)
        assert process.exitcode == 0
    done = [choice for each in told for choice in each[:-1]]
    assert len(done) == len(set(done))
    assert all(len(each) > 1 for each in told)  # both worked
    assert all(len(set(each[-1])) >= len(done) - 1 for each in told)  # each knows what the other found


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_of_a_killed_process_are_taken_over_after_its_last_heartbeat(server):
    hanging, pipe = start(server, "stale", 6, 3)
    begun = [pipe.recv() for _ in range(3)]
    os.kill(hanging.pid, signal.SIGKILL)
    hanging.join()
    time.sleep(4.5)  # longer than the grace period
    heir, pipe = start(server, "stale", 6)
    told = heard(pipe)
    heir.join(30)
    assert heir.exitcode == 0
    assert begun[2] in told[:-1]  # the lost evaluation is done again,
    assert not set(begun[:2]) & set(told[:-1])  # the others are not
    assert set(begun) <= set(told[-1])
