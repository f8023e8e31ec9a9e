"""A measuring process has the machine to itself. Others wait at their next step, but not for ever."""

import multiprocessing as mp
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

from amc.runtime.locks import MeasurementLock


def _work(folder: Path, log: Path, seconds: float) -> None:
    """Computes in steps of 5 ms, and records when each began and ended."""
    with MeasurementLock(folder) as lock, log.open("w") as file:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.monotonic()
            time.sleep(0.005)
            file.write(f"{begun} {time.monotonic()}\n")
            lock.give_way()


def _measure(folder: Path, log: Path, times: int) -> None:
    with MeasurementLock(folder) as lock, log.open("w") as file:
        for _ in range(times):
            with lock.exclusive() as alone:
                begun = time.monotonic()
                time.sleep(0.05)
                lock.give_way()  # what reports progress while it measures does not let go
                file.write(f"{begun} {time.monotonic()} {alone}\n")
            time.sleep(0.02)


def forked(target, *arguments):
    process = mp.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def spans(log: Path) -> list[list[float]]:
    return [[float(word) for word in line.split()[:2]] for line in log.read_text().splitlines()]


def test_nobody_works_while_somebody_measures(tmp_path: Path):
    workers = [forked(_work, tmp_path / "locks", tmp_path / f"w{i}", 1.2) for i in range(2)]
    time.sleep(0.2)
    measurers = [forked(_measure, tmp_path / "locks", tmp_path / f"m{i}", 3) for i in range(2)]
    for process in (*workers, *measurers):
        process.join()
        assert process.exitcode == 0
    measured = [span for i in range(2) for span in spans(tmp_path / f"m{i}")]
    worked = [span for i in range(2) for span in spans(tmp_path / f"w{i}")]
    assert len(measured) == 6
    assert len(worked) > 40
    assert all("True" in line for i in range(2) for line in (tmp_path / f"m{i}").read_text().splitlines())
    for begun, ended in measured:
        assert all(end <= begun or start >= ended for start, end in worked)
    ordered = sorted(measured)
    assert all(first[1] <= second[0] for first, second in pairwise(ordered))


def test_ended_and_stopped_processes_block_nobody(tmp_path: Path):
    worker = forked(_work, tmp_path, tmp_path / "log", 60)
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGSTOP)
    with MeasurementLock(tmp_path, longest_wait=1.0) as lock:
        begun = time.monotonic()
        for _ in range(5):  # who has waited in vain once does not wait as long again
            with lock.exclusive() as alone:
                assert not alone
        assert 1.0 < time.monotonic() - begun < 4.0
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with MeasurementLock(tmp_path, longest_wait=5) as lock, lock.exclusive() as alone:
        assert alone


def test_without_a_folder_for_locks_work_goes_on(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with MeasurementLock(tmp_path / "file") as lock:
        lock.give_way()
        with lock.exclusive() as alone:
            assert not alone
