"""How far a run is, told to other processes: ``progress.json`` in its folder, while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from amc.errors import printable
from amc.runtime.files import MIB, read_json
from amc.runtime.monitor import Monitor, announce

NAME = "progress.json"
_EVERY = 0.5  # seconds between two writes
_STALE = 60.0  # seconds after which a run on another machine counts as gone


class Recorder:
    """Passes everything on to a monitor, and keeps progress.json up to date, as far as the disk allows."""

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        self._path, self._monitor = folder / NAME, monitor
        self._stage, self._note, self._began, self._written = "", "", time.time(), 0.0

    def plan(self, stages: Sequence[str]) -> None:
        announce(self._monitor, stages)

    def begin(self, stage: str) -> None:
        self._stage, self._note, self._began = stage, "", time.time()
        self._monitor.begin(stage)
        self._write(0.0)

    def progress(self, share: float, note: str = "") -> None:
        self._note = note or self._note
        self._monitor.progress(share, note)
        if time.time() - self._written > _EVERY:
            self._write(share)

    def end(self, seconds: float) -> None:
        self._monitor.end(seconds)

    def say(self, text: str) -> None:
        self._monitor.say(text)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, share: float) -> None:
        self._written = time.time()
        now = {"stage": self._stage, "share": round(min(1.0, share), 4), "note": self._note, "began": self._began,
               "time": self._written, "pid": os.getpid(), "host": socket.gethostname()}  # fmt: skip
        beside = self._path.with_name(f".{NAME}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # not flushed to disk: after a power cut nobody asks
            beside.write_text(json.dumps(now), encoding="utf-8")
            beside.replace(self._path)


@dataclass(frozen=True)
class Progress:
    """Where a run is: its stage, the share of it that is done, since when (seconds since the epoch)."""

    stage: str
    share: float
    note: str
    began: float
    alive: bool
    """Whether the process that wrote this is still there."""


def read_progress(folder: Path) -> Progress | None:
    """What a run's process has told last; None where it has told nothing, or something else."""
    try:
        told = _Told.model_validate(read_json(folder / NAME, MIB, own=True))
    except (OSError, ValueError):
        return None
    return Progress(printable(told.stage), told.share, printable(told.note), told.began, _alive(told))


class _Told(BaseModel):
    """What is in progress.json."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    stage: Annotated[str, Field(max_length=200)]
    share: Annotated[float, Field(ge=0, le=1)]
    note: Annotated[str, Field(max_length=2000)]
    began: Annotated[float, Field(ge=0, le=1e11)]
    time: Annotated[float, Field(ge=0, le=1e11)]
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    host: Annotated[str, Field(max_length=300)]


def _alive(told: _Told) -> bool:
    if told.host != socket.gethostname():
        return time.time() - told.time < _STALE
    try:
        os.kill(told.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
