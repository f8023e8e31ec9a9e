"""Execute runs in separate processes, several at a time. A crash ends only its own run.

Processes are forked from a server that has imported everything, so a start takes milliseconds instead of the seconds
for importing torch. The server never computes, so it has no threads that a fork would lose.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import resource
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from amc.batch.drive import Failure, Limits, described
from amc.batch.matrix import Job
from amc.config import AUTO, from_dict, to_dict, unless_auto
from amc.errors import is_out_of_memory


class Processes:
    """A `Workforce` of processes on this machine."""

    def __init__(self, limits: Limits, logs: Path) -> None:
        self._limits, self._logs = limits, logs
        self._running: dict[int, tuple[Job, Any, Connection]] = {}

    def room(self) -> int:
        return self._limits.workers

    def begin(self, job: Job, attempt: int) -> int:
        config = job.config.replace(threads=unless_auto(job.config.threads) or self._limits.threads or AUTO)
        process, pipe = start(_run, (to_dict(config), self._limits), self._logs / f"{job.name}.log")
        self._running[process.sentinel] = (job, process, pipe)
        return int(process.sentinel)

    def ended(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        found = [sentinel for sentinel in wait(list(self._running), seconds) if isinstance(sentinel, int)]
        return [(sentinel, self._failure(*self._running.pop(sentinel))) for sentinel in found]

    def _failure(self, job: Job, process: Any, pipe: Connection) -> Failure | None:
        failure = reported_failure(process, pipe)
        if failure is not None and process.exitcode != 0:  # it sent no message: its last output is in the log
            last = _last_line(self._logs / f"{job.name}.log")
            if is_out_of_memory(RuntimeError(last)):
                return Failure(f"out of memory: {last}", False)
        return failure

    def stop(self) -> None:
        _stop([process for _, process, _ in self._running.values()])


def run_in_process(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result of a function that runs in its own process, or the Failure of that process."""
    process, pipe = start(_answer, (function, arguments), None)
    answer = None
    with contextlib.suppress(EOFError):
        answer = pipe.recv()
    process.join()
    return answer if answer is not None else describe_exit(process.exitcode)


def start(target: Callable[..., None], arguments: tuple[Any, ...], log: Path | None) -> tuple[Any, Connection]:
    """Start a process forked from the server. Returns it and the pipe that reports its end."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["amc.batch.worker"])
    ours, theirs = context.Pipe(duplex=False)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=run_watched, args=(target, arguments, theirs, log), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def run_watched(target: Callable[..., None], arguments: tuple[Any, ...], pipe: Connection, log: Path | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make processes started with & ignore SIGINT
    threading.Thread(target=end_with_parent, args=(pipe,), daemon=True).start()
    target(*arguments, pipe, log)


def end_with_parent(pipe: Connection) -> None:
    """Wait until no process reads from the pipe any more, then stop this process as Ctrl-C does.

    A killed batch cannot stop its runs. They would continue, and block the same command when it is given again.
    """
    watch = select.poll()
    watch.register(pipe.fileno(), 0)
    if any(event & select.POLLERR for _, event in watch.poll()):
        os.kill(os.getpid(), signal.SIGINT)


def reported_failure(process: Any, pipe: Connection) -> Failure | None:
    """The failure that a process reported, or else one from its exit code."""
    process.join()
    try:
        message: Failure | None = pipe.recv() if pipe.poll() else describe_exit(process.exitcode)
    except EOFError:
        message = describe_exit(process.exitcode)
    finally:
        pipe.close()
    return message


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def describe_exit(code: int | None) -> Failure:
    """The failure for the exit code of a process that sent no message.

    >>> describe_exit(1).reason
    'ended with exit code 1 and no message'
    """
    if code == -signal.SIGKILL:
        return Failure("killed (SIGKILL), which the system does when memory runs out", True)
    if code is not None and code < 0:
        return Failure(f"crashed ({signal.Signals(-code).name})", True)
    return Failure(f"ended with exit code {code} and no message", True)


def _stop(processes: Sequence[Any]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _run(values: dict[str, Any], limits: Limits, pipe: Connection, log: Path) -> None:
    """In the new process: execute the run, with its output in a log file."""
    from amc.batch.worker import keeping_to, work
    from amc.runtime.display import Display
    from amc.runtime.memory import installed

    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        if limits.memory:
            resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
        try:
            config = keeping_to(limits.memory or installed() // limits.workers, from_dict(values))
            with Display() as display:
                work(config, display)
            failure = None
        except KeyboardInterrupt:
            failure = Failure("stopped", False)
        except Exception as error:  # noqa: BLE001  (reported as the failure of this run)
            traceback.print_exc()
            failure = described(error)
        sys.stdout.flush()
        sys.stderr.flush()
        pipe.send(failure)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...], pipe: Connection, log: None) -> None:
    pipe.send(function(*arguments))
