"""A process that has everything imported and warmed up, and forks a tiny run whenever it is told to.

It reads, a line each: a folder; the stages that may end before the run is killed, and the seconds after that (-1:
never); and how many files may be flushed to disk before it is full (-1: never). For each it prints the run's exit
status.
"""

import errno
import importlib
import json
import os
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc import reports
from amc.config import Config, DataConfig, from_dict
from amc.evaluation.backend import Forwarding
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.score import Race, Score
from amc.latency.instruments import Instruments
from amc.operators.policy import fingerprint
from amc.pipeline import exporting, original
from amc.pipeline.pipeline import compress_task
from amc.runtime.files import replacing, write_text
from amc.space.sites import Choice
from amc.task import Task, load_data, make_task
from amc.train import trainer as finetune

measuring = importlib.import_module("amc.latency.measurement")  # the room has a function of that name
TINY = {
    "budget": {"flops": "0.5"},
    "search": {"searcher": "annealing", "evaluations": 8},
    "finetune": {"epochs": 1, "candidates": 2, "trial_share": 0.3, "precision": "float32", "batch_size": 256},
    "threads": 1,
}


def tiny_task() -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip
    splits = load_data(DataConfig(calibration=64, search=64))
    return make_task("tiny", model, splits, torch.device("cpu"))


def prepare(known: Path) -> None:
    """Measure briefly; save a checkpoint at every step, so that kills meet it; export each network once only;
    and draw no charts."""
    measuring.ROUNDS, measuring.LEAST_BLOCKS, measuring.WARMUP = 2, 2, 1
    finetune.CHECKPOINT_SECONDS = 0.0
    export = original.export_onnx
    known.mkdir()

    def remembered(model: nn.Module, example: torch.Tensor, path: Path) -> None:
        kept = known / fingerprint(model)
        if not kept.exists():
            export(model, example, kept)
        with replacing(path) as temporary:
            temporary.write_bytes(kept.read_bytes())

    original.export_onnx = remembered

    def export_whole(model: nn.Module, example: torch.Tensor, path: Path, *_: object) -> frozenset[str]:
        remembered(model, example, path)
        return frozenset()  # no layer is left out: no branch is removed here

    exporting.export_pruned = export_whole
    reports.write_reports = lambda folder: write_text(folder / "report.md", "drawn elsewhere")


def run(task: Task, folder: Path, values: dict[str, object] = TINY) -> None:
    """The run in a folder, with every evaluation that is really done counted in a file beside it."""
    config: Config = from_dict(values).replace(out=str(folder), cache=str(folder.with_suffix(".cache")))
    counted = partial(Counted, folder.with_suffix(".calls"))
    compress_task(task, config, folder, remote=counted, instruments=Instruments(seconds=0.0))


class Counted(Forwarding):
    """Notes every policy that is evaluated."""

    def __init__(self, file: Path, config: Config, evaluator: Evaluator) -> None:
        super().__init__(evaluator)
        self.file = file

    def note(self, choice: Choice) -> None:
        with self.file.open("a") as file:
            file.write(f"{choice}\n")

    def score(self, choice: Choice) -> Score:
        self.note(choice)
        return super().score(choice)

    def race(self, choice: Choice, *others: Any) -> Race:
        self.note(choice)
        return super().race(choice, *others)


def fill_disk(writes: int) -> None:
    """From now on the disk has room for so many flushes."""
    real, left = os.fsync, writes

    def fsync(handle: int) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        real(handle)

    os.fsync = fsync


def serve() -> None:
    task, folder = tiny_task(), Path(sys.argv[1])
    prepare(folder / "known")
    # everything but training: autograd's threads would not outlive a fork
    run(task, folder / "warm", {**TINY, "finetune": {"epochs": 0}})
    print("ready", flush=True)
    for line in sys.stdin:
        folder, stages_before, seconds, writes = json.loads(line)
        before = stages_ended(Path(folder))
        process = os.fork()
        if process == 0:
            os._exit(attempt(task, Path(folder), writes))
        if seconds >= 0:
            while stages_ended(Path(folder)) - before < stages_before and not ended(process):
                time.sleep(0.001)
            time.sleep(seconds)
            os.kill(process, signal.SIGKILL)  # it may have ended: its number is its own until we have waited for it
        print(os.waitpid(process, 0)[1], flush=True)


def stages_ended(folder: Path) -> int:
    """How many stages have ended in a folder so far, those of earlier attempts included."""
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b'{"kind": "stage"') if path.exists() else 0


def ended(process: int) -> bool:
    """Whether a child has ended. Its status stays there to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def attempt(task: Task, folder: Path, writes: int) -> int:
    """The run's exit code."""
    try:
        fill_disk(writes)
        run(task, folder)
    except OSError as error:
        return error.errno or 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
