"""The whole flow: search → prune → choose → fine-tune → export → prove → measure → bundle. Open this first."""

from __future__ import annotations

import contextlib
import shlex
from functools import partial
from itertools import count
from pathlib import Path

import torch

from amc.config import Config, from_run, unless_auto
from amc.errors import AmcError, BundleError, Interrupted
from amc.latency.instruments import Instruments
from amc.operators.policy import Policy
from amc.pipeline.answers import compare_answers
from amc.pipeline.backends import RemoteBackend
from amc.pipeline.checks import check, check_gradients
from amc.pipeline.delivery import Delivery
from amc.pipeline.findings import findings
from amc.pipeline.measuring import Measuring
from amc.pipeline.opening import open_task
from amc.pipeline.record import Record
from amc.pipeline.recovering import train_original
from amc.pipeline.result import Result
from amc.pipeline.rounds import Prepared, run_rounds
from amc.pipeline.stages import Stages
from amc.pipeline.summary import summarise
from amc.pipeline.timing import RunTiming
from amc.pipeline.trust import is_own, needs_trust, refuse_foreign, without_download
from amc.runtime.arguments import PATH, expect
from amc.runtime.files import check_folder, sweep
from amc.runtime.journal import Journal, read_records
from amc.runtime.locks import MeasurementLock
from amc.runtime.monitor import Logged, Monitor, announce
from amc.runtime.progress import Recorder
from amc.runtime.tracking import tracked
from amc.task import Task


def run(
    config: Config,
    resume: str | Path | None = None,
    monitor: Monitor | None = None,
    trust: bool = False,
    remote: RemoteBackend | None = None,
    instruments: Instruments | None = None,
) -> Result:
    """Run a configuration. With ``resume``, continue the run in that folder with its own configuration.

    A folder made by somebody else that names Python files, or other places to write to, is refused unless you ``trust``
    it. ``remote`` scores policies on other machines. ``instruments`` time networks instead of ONNX Runtime on this
    machine. ``monitor`` receives the progress; without one it is logged (`logging`, the logger ``amc``). Raises
    AmcError for a user's mistakes.
    """
    expect("config", config, Config, "an amc.Config")
    expect("resume", resume, PATH, "a path", optional=True)
    expect("trust", trust, bool, "true or false")
    if resume is not None:
        folder = Path(resume)
        _check_inside(folder)
        if not (folder / "config.yaml").is_file():
            raise BundleError(f"{folder} holds no run to resume (there is no config.yaml).")
        config = from_run(folder, passwords=True)
        trust = trust or is_own(folder, config)
        if not trust:
            refuse_foreign(config, folder)
        check(config)
        task = open_task(config if trust else without_download(config))
        return compress_task(task, config, folder, monitor, remote, instruments)
    check(config)
    task = open_task(config)
    return compress_task(task, config, new_folder(config), monitor, remote, instruments)


def use_threads(config: Config) -> None:
    """Set torch's number of threads, if the configuration has one."""
    threads = unless_auto(config.threads)
    if threads is not None:
        torch.set_num_threads(threads)


def new_folder(config: Config) -> Path:
    """The folder for a new run. Raises BundleError if it already holds one."""
    if config.out is None:
        words = [config.model.name, config.data.source.partition(":")[0]]
        stem = "-".join("".join(c if c.isalnum() else "-" for c in Path(w).name) for w in words)
        for number in count(1):
            with contextlib.suppress(FileExistsError):
                folder = Path("amc-runs", f"{stem}-{number}")
                folder.mkdir(parents=True)
                return folder
    folder = Path(config.out or "")
    if _holds_run(folder):
        raise BundleError(f"{folder} already holds a run: continue with --resume {folder}, or use another --out.")
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder} is a file: give a folder with --out.")
    return folder


def _holds_run(folder: Path) -> bool:
    """Whether a folder holds a run. One that ended before its configuration was written is deleted."""
    journal = folder / "journal.jsonl"
    if not journal.exists() and not journal.is_symlink():
        return False
    if (folder / "config.yaml").exists() or any(
        r["kind"] not in ("run", "signature", "stage") for r in read_records(journal)
    ):
        return True
    journal.unlink()
    return False


def _check_inside(folder: Path) -> None:
    """Raise BundleError if a link in a run's folder points out of it."""
    try:
        check_folder(folder)
    except FileNotFoundError:
        raise BundleError(f"there is no folder {folder}.") from None
    except OSError as error:
        what = f"cannot use {error.filename}: {error.strerror}"
        raise BundleError(f"{what}. A run's folder may contain only regular files and folders.") from None


def compress_task(
    task: Task,
    config: Config,
    folder: Path,
    monitor: Monitor | None = None,
    remote: RemoteBackend | None = None,
    instruments: Instruments | None = None,
) -> Result:
    """Run a configuration on an open task. Work that the folder's journal already holds is not repeated.

    The configuration must have been checked (`check`).
    """
    check_gradients(task, config)
    use_threads(config)
    torch.manual_seed(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    _check_inside(folder)
    with (
        Journal(folder / "journal.jsonl") as journal,
        MeasurementLock() as lock,
        Recorder(folder, monitor or Logged()) as recorder,
    ):
        sweep(folder)
        new = journal.last("run") is None
        try:
            record = Record(task, config, folder, journal, recorder, lock, instruments)
            with tracked(config, folder, journal, recorder.say):
                return _compress(record, remote)
        except KeyboardInterrupt:
            if not (folder / "config.yaml").is_file():
                raise
            raise Interrupted(resume_command(folder, config)) from None
        except AmcError:
            worked = any(journal.last(kind) for kind in ("evaluation", "device-latency"))
            if new and not worked:  # a mistake that was found before any work leaves no folder behind
                for name in ("journal.jsonl", "config.yaml", "original.onnx", "progress.json", "study.log"):
                    (folder / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def resume_command(folder: Path, config: Config) -> str:
    """The command that continues the run in a folder.

    >>> resume_command(Path("my run"), Config())
    "amc search --resume 'my run'"
    """
    return f"amc search --resume {shlex.quote(str(folder))}{' --trust' if needs_trust(folder, config) else ''}"


def _planned(record: Record) -> list[str]:
    """The stages of a run that needs one round."""
    config = record.config
    profiled = config.budget.latency is not None or config.search.latency_aware
    wanted = {"profile": profiled, "fine-tune": record.epochs > 0, "quantise": config.int8}
    return [stage for stage in _STAGES if wanted.get(stage, True)]


_STAGES = (
    "inspect", "profile", "calibrate", "search", "choose", "fine-tune", "export", "measure", "quantise", "test",
)  # fmt: skip


def _compress(record: Record, remote: RemoteBackend | None) -> Result:
    """Run all stages, one after the other."""
    stages, delivery = Stages(record, remote), Delivery(record)
    if record.journal.last("done") is not None:
        return delivery.finished()
    announce(record.monitor, _planned(record))
    with record.stage("inspect"):
        stages.check_training()
        graph = stages.inspect()
    search, limited = record.config.search, record.config.budget.latency is not None
    with record.optional_stage("profile", limited or search.latency_aware):
        timing = RunTiming(record, graph)
        latency, predicted = timing.constraint(), timing.prediction()
        space = stages.space(graph, latency, predicted)
        if latency and latency.measure_near_budget(space, record.config.seed, record.step):
            space = stages.space(graph, latency)
    with record.stage("calibrate"):
        evaluator = stages.calibrate(graph, space)
    found = run_rounds(record, stages, Prepared(graph, evaluator, latency), space)
    reference = None
    with record.optional_stage("train original", record.trains_original):
        if record.trains_original:
            reference = train_original(record, record.phases(space, found.chosen))
    with record.optional_stage("quantise", record.config.int8):
        int8 = Measuring(record).quantise()
    with record.stage("test"):
        policy = Policy.of(record.task.model, evaluator.recorded(found.chosen), record.task.example)
        scores = delivery.test(found.model, policy, reference)
        answers = record.once("answers", partial(compare_answers, record.task, found.model, record.config.seed))
    told = findings(record, evaluator, latency, found, scores, int8, answers)
    summary = summarise(record.task, record.config, policy, told)
    return delivery.deliver(found.model, policy, found.evaluations, summary)
