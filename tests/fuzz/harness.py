"""Runs cases in child processes, so that a crash, a hang or a full memory ends a child and is seen.

A case is one call of a *kind*: a function of a random generator and an empty folder. It may raise `AmcError` with one
line; whatever else it raises is a finding, and so are a crash, more than `SECONDS` of the processor or `CLOCK` in all
(on a busy machine a process waits), more than `BYTES` of memory, and files beside its folder.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 20
CLOCK = 6 * SECONDS
BYTES = 2 << 30

Kind = Callable[[random.Random, Path], None]


class Accepted(AssertionError):
    """Nonsense was accepted, or a file was changed: a kind raises it itself."""


@dataclass(frozen=True)
class Finding:
    """What went wrong in one case; ``python -m tests.fuzz --kind KIND --only CASE`` repeats it."""

    kind: str
    case: int
    what: str


def generator(kind: str, case: int, seed: int) -> random.Random:
    """The same numbers on every machine and in every Python."""
    return random.Random(f"{seed}:{kind}:{case}")


def run(kinds: dict[str, Kind], cases: Sequence[tuple[str, int]], seed: int = 0, processes: int = 1) -> list[Finding]:
    """All cases, dealt out to child processes; a child that ends is replaced, and its case is a finding."""
    findings: list[Finding] = []
    shares = [list(cases[i::processes]) for i in range(processes)]
    workers = [_Worker(kinds, share, seed) for share in shares if share]
    while workers:
        for worker in workers:
            findings += worker.poll()
        workers = [worker for worker in workers if not worker.done]
        time.sleep(0.05)
    return findings


class _Worker:
    """A child process that works through cases, and the parent's view of it."""

    def __init__(self, kinds: dict[str, Kind], cases: list[tuple[str, int]], seed: int) -> None:
        self._kinds, self._cases, self._seed = kinds, cases, seed
        self._at = 0
        self.done = False
        self._begin()

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._near, far = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self._child = context.Process(
            target=_work, args=(self._kinds, self._cases[self._at :], self._seed, far), daemon=True
        )
        self._child.start()
        self._spent = 0.0
        far.close()

    def poll(self) -> list[Finding]:
        found: list[Finding] = []
        try:
            while self._near.poll():
                told = self._near.recv()
                kind, case = self._cases[self._at]
                self._at, self._since, self._spent = self._at + 1, time.monotonic(), _processor(self._child.pid)
                if told is not None:
                    found.append(Finding(kind, case, told))
        except EOFError:
            self._child.join()
            if self._at < len(self._cases) and self._child.exitcode:
                kind, case = self._cases[self._at]
                found.append(Finding(kind, case, f"the process ended with {self._child.exitcode}"))
                self._at += 1
            return found + self._again()
        late = time.monotonic() - self._since
        if late > CLOCK or (late > SECONDS and _processor(self._child.pid) - self._spent > SECONDS):
            self._child.kill()
            self._child.join()
            kind, case = self._cases[self._at]
            found.append(Finding(kind, case, f"it hangs for more than {SECONDS} s"))
            self._at += 1
            self._again()
        return found

    def _again(self) -> list[Finding]:
        self._near.close()
        if self._at >= len(self._cases):
            self.done = True
        else:
            self._begin()
        return []


def _work(kinds: dict[str, Kind], cases: list[tuple[str, int]], seed: int, told: Connection) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    faulthandler.disable()
    if not os.environ.get("AMC_FUZZ_LOUD"):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (_virtual() + BYTES + (1 << 30),) * 2)
    place = Path(tempfile.mkdtemp(prefix="amc-fuzz-"))
    try:
        for kind, case in cases:
            folder = place / "case"
            folder.mkdir()
            outcome = one(kinds[kind], generator(kind, case, seed), folder)
            used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if outcome is None and used > BYTES:
                outcome = f"it takes {used / 2**30:.1f} GiB"
            beside = sorted(p.name for p in place.iterdir() if p.name != "case")
            if outcome is None and beside:
                outcome = f"it leaves {beside[0]} beside its folder"
            shutil.rmtree(place)
            place.mkdir()
            told.send(outcome)
            if used > BYTES:
                return
    finally:
        shutil.rmtree(place, ignore_errors=True)
        told.close()


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _processor(pid: int | None) -> float:
    """Seconds that a process had the processor (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one(kind: Kind, rng: random.Random, folder: Path) -> str | None:
    """What goes wrong in a case; None where it is met as it must be."""
    from amc.errors import AmcError

    try:
        kind(rng, folder)
    except AmcError as error:
        text = str(error)
        if "\n" in text or len(text) > 1000 or not text.isprintable():
            return f"its message is not one plain line: {text[:200]!r}"
    except Accepted as error:
        return str(error)
    except SystemExit as error:
        if error.code not in (0, 1, 2, 3):
            return f"it exits with {error.code!r}"
    except BaseException as error:  # noqa: BLE001  (that is what is looked for)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {line[:200]} ({Path(frame.filename).name}:{frame.lineno})"
    return None


def plain(value: Any) -> Any:
    """A deep copy of plain values."""
    import json

    return json.loads(json.dumps(value))
