"""Runs in processes of their own, some at a time: whatever ends one of them ends that one only.

The processes are forked off a server that has imported everything already, so that starting one takes milliseconds
and not the seconds of importing torch. The server itself never computes: it has no threads that a fork would lose.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import resource
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from amc.batch.matrix import Job
from amc.config import Config, from_dict, to_dict
from amc.errors import AmcError, first_line, is_out_of_memory

_TICK = 0.25  # seconds


@dataclass(frozen=True)
class Failure:
    """Why a run did not end well, and whether trying again may help."""

    reason: str
    again: bool


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at a run."""

    job: Job
    attempt: int
    failure: Failure | None
    last: bool
    """Whether there will be no other attempt."""


class Observer:
    """Told of what happens; does nothing with it."""

    def started(self, job: Job, attempt: int) -> None:
        """An attempt, counted from 1, begins."""

    def ended(self, outcome: Outcome) -> None:
        """An attempt is over."""

    def tick(self) -> None:
        """Some time has passed."""


@dataclass(frozen=True)
class Limits:
    """What the processes may use: how many there are, threads of each, bytes of memory of each (0: no limit)."""

    workers: int = 1
    threads: int = 0
    memory: int = 0
    retries: int = 1


def run_all(jobs: Sequence[Job], limits: Limits, logs: Path, observer: Observer) -> None:
    """Run every job, ``limits.workers`` at a time. On Ctrl-C all are stopped; each can be resumed."""
    waiting = deque((job, 1) for job in jobs)
    running: dict[Any, tuple[Job, int, Any, Connection]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limits.workers:
                job, attempt = waiting.popleft()
                config = replace(job.config, threads=job.config.threads or limits.threads)
                process, pipe = start(_run, (to_dict(config), limits.memory), logs / f"{job.name}.log")
                running[process.sentinel] = (job, attempt, process, pipe)
                observer.started(job, attempt)
            for sentinel in wait(list(running), _TICK):
                job, attempt, process, pipe = running.pop(sentinel)
                failure = told(process, pipe)
                again = failure is not None and failure.again and attempt <= limits.retries
                if again:
                    waiting.append((job, attempt + 1))
                observer.ended(Outcome(job, attempt, failure, not again))
            observer.tick()
    finally:
        _stop([process for _, _, process, _ in running.values()])


def ask(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What a function gives in a process of its own, or the Failure of that process."""
    process, pipe = start(_answer, (function, arguments), None)
    answer = None
    with contextlib.suppress(EOFError):
        answer = pipe.recv()
    process.join()
    return answer if answer is not None else _ended(process.exitcode)


def start(target: Callable[..., None], arguments: tuple[Any, ...], log: Path | None) -> tuple[Any, Connection]:
    """A process that was forked off the server, and the pipe that it tells its end through."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["amc.batch.worker"])
    ours, theirs = context.Pipe(duplex=False)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=target, args=(*arguments, theirs, log), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def told(process: Any, pipe: Connection) -> Failure | None:
    """How a process has ended: as it says itself, or, where it could not say anything, as the system says."""
    process.join()
    try:
        message: Failure | None = pipe.recv() if pipe.poll() else _ended(process.exitcode)
    except EOFError:
        message = _ended(process.exitcode)
    finally:
        pipe.close()
    return message


def _ended(code: int | None) -> Failure:
    if code == -signal.SIGKILL:
        return Failure("killed (SIGKILL), as the system does when memory runs out", True)
    if code is not None and code < 0:
        return Failure(f"crashed ({signal.Signals(-code).name})", True)
    return Failure(f"ended with exit code {code} and without a word", True)


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _run(values: dict[str, Any], memory: int, pipe: Connection, log: Path) -> None:
    """In the new process: the run, with what it says in a file."""
    from amc.batch.worker import work
    from amc.display import Display

    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        if memory:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        try:
            config: Config = from_dict(values)
            with Display() as display:
                work(config, display)
            failure = None
        except KeyboardInterrupt:
            failure = Failure("stopped", False)
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends this run only, and is told)
            traceback.print_exc()
            failure = described(error)
        sys.stdout.flush()
        sys.stderr.flush()
        pipe.send(failure)


def described(error: Exception) -> Failure:
    """What a run threw, as a failure: a user's mistake stays one, however often it is tried."""
    if is_out_of_memory(error):
        return Failure(f"out of memory: {first_line(error)}", False)
    if isinstance(error, AmcError):
        return Failure(str(error), False)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return Failure(f"{error.strerror or error}{where}", True)
    return Failure(f"{type(error).__name__}: {first_line(error)}", True)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...], pipe: Connection, log: None) -> None:
    pipe.send(function(*arguments))
