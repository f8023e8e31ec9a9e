"""A run's numbers in TensorBoard or MLflow, while it goes on. The only room that knows them; both are optional.

The run's journal is followed, so whatever is recorded is shown: evaluations with their costs and the best so far, what
refining, trials and training gave, seconds of the stages, the final networks. The journal stays the truth: a resumed
run tells what it holds again where that does no harm, and a server that goes away is no reason to stop.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from amc.config import Config, masked, to_dict
from amc.errors import ConfigError, did_you_mean, first_line
from amc.runtime.journal import Journal

KINDS = ("tensorboard", "mlflow")
_SECRET = ("log", "search.storage")
"""What of a configuration is not shown: it may hold passwords."""


def check_log(log: str | None) -> None:
    """Raise ConfigError for a ``KIND:PLACE`` that cannot be logged to: unknown, not installed, or not answering."""
    if log is None:
        return
    kind, _, place = log.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"--log {masked(log)} is unknown.{did_you_mean(kind, KINDS)} Name one as in "
                          "tensorboard:FOLDER or mlflow:sqlite:///runs.db.")  # fmt: skip
    if not place:
        where = "a folder (tensorboard:logs)" if kind == "tensorboard" else "a store (mlflow:sqlite:///runs.db)"
        raise ConfigError(f"--log {kind} needs {where}.")
    if importlib.util.find_spec(kind) is None:
        raise ConfigError(f"--log {kind} needs a package that is not installed: pip install 'amc-compress[{kind}]'.")
    if kind == "mlflow":
        with _one_line_errors(log):
            _client(place).search_experiments(max_results=1)


@contextlib.contextmanager
def tracked(config: Config, folder: Path, journal: Journal, say: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, what the journal of the run in ``folder`` records goes to where ``config.log`` says."""
    if config.log is None:
        yield
        return
    kind, _, place = config.log.partition(":")
    with _one_line_errors(config.log):
        sink: Sink = (
            TensorBoardSink(place, folder) if kind == "tensorboard" else MlflowSink(place, folder, config, journal)
        )
    tracker = _Tracker(sink, folder, lambda error: say(f"nothing more goes to {kind}: {masked(first_line(error))}"))
    journal.follow(tracker.take)
    try:
        yield
    finally:
        tracker.close(done=journal.last("done") is not None)


class Sink(Protocol):
    """Where numbers go. ``when``: seconds since the epoch, None where it is not known any more."""

    def put(self, values: Mapping[str, float], step: int, when: float | None) -> None: ...

    def close(self, done: bool) -> None: ...


class _Tracker:
    """Makes numbers of records. What goes wrong is told once, and ends the logging only."""

    def __init__(self, sink: Sink, folder: Path, failed: Callable[[Exception], None]) -> None:
        self._sink: Sink | None = sink
        self._folder, self._failed = folder, failed
        self._counts: dict[str, int] = {}
        self._best = -math.inf

    def take(self, record: Mapping[str, Any], again: bool) -> None:
        """A record of the journal; ``again`` where it was there before."""
        name = record["kind"] if record["kind"] != "stage" else f"stage {record['name']}"
        step = self._counts[name] = self._counts.get(name, 0) + 1
        if record["kind"] == "training":
            step = round(100 * record["done"])
        when = record.get("time", None if again else time.time())
        self._safely(lambda sink: sink.put(dict(_finite(self._values(record))), step, when))

    def close(self, done: bool) -> None:
        """The run is over, or is interrupted."""
        self._safely(lambda sink: sink.close(done))

    def _values(self, record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Name → number, of whatever a record tells."""
        kind = record["kind"]
        if kind in ("evaluation", "other-evaluation", "refined", "trial"):
            for key in ("loss", "metric", "reward", "share"):
                yield f"{kind}/{key}", record.get(key)
            for resource, cost in (record.get("costs") or {}).items():
                yield f"{kind}/{resource}", cost
        if kind == "evaluation":
            if record.get("error") is None and not record.get("lost", record.get("share", 1) < 1):
                self._best = max(self._best, record["metric"])
            yield "evaluation/best metric", self._best
        elif kind == "training":
            yield "fine-tuning/loss", record["loss"]
        elif kind == "latency":
            yield "latency/measured ms", record["ms"]
            yield "latency/predicted ms", record["predicted"]
        elif kind == "stage":
            yield f"seconds/{record['name']}", record["seconds"]
        elif kind == "done":
            yield from _results(self._folder / "result.json")

    def _safely(self, do: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            do(self._sink)
        except Exception as error:  # noqa: BLE001  (the libraries' own errors share no base class)
            self._sink = None
            self._failed(error)


def _finite(values: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    for name, value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)


def _results(path: Path) -> Iterator[tuple[str, Any]]:
    """The final numbers of a run: costs and metrics of the original and of the compressed network."""
    result = json.loads(path.read_text(encoding="utf-8"))
    for which in ("original", "final"):
        for key, value in result[which].items():
            yield f"{which}/{key}", value
    yield "final/latency ratio", result["latency"]["ratio"]["value"]
    yield "final/budget met", float(all(line["met"] for line in result["proof"]))


class TensorBoardSink:
    """One event file an attempt; a later one takes the place of those before it."""

    def __init__(self, place: str, run: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(place, run.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        # from here on whatever an interrupted attempt has written counts as withdrawn
        self._writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START), wall_time=time.time()))

    def put(self, values: Mapping[str, float], step: int, when: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(Event(step=step, wall_time=when or time.time(), summary=shown))
        self._writer.flush()

    def close(self, done: bool) -> None:
        self._writer.close()


class MlflowSink:
    """One MLflow run, which a resumed run goes on with; the experiment is named like the folder of the runs."""

    def __init__(self, place: str, folder: Path, config: Config, journal: Journal) -> None:
        self._client = _client(place)
        known = journal.last("mlflow")
        if known is not None:
            self._run = str(known["run"])
            self._client.update_run(self._run, status="RUNNING")
            return
        name = folder.resolve().parent.name or "amc"
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run = str(self._client.create_run(number, run_name=folder.name).info.run_id)
        self._client.log_batch(self._run, params=list(_parameters(config)))
        journal.append("mlflow", run=self._run)

    def put(self, values: Mapping[str, float], step: int, when: float | None) -> None:
        from mlflow.entities import Metric

        if values and when is not None:  # the same number of the same moment is there once, however often it is told
            metrics = [Metric(_NAME.sub("-", name), value, round(1000 * when), step) for name, value in values.items()]
            self._client.log_batch(self._run, metrics=metrics)

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if done else "KILLED")


_NAME = re.compile(r"[^\w./ -]")  # what MLflow takes no names with


def _client(place: str) -> Any:
    """A client of the store or server at a URI, in which $NAME is taken from the environment. It does not wait long."""
    for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
                        ("MLFLOW_DISABLE_TELEMETRY", "true")):  # fmt: skip
        os.environ.setdefault(name, value)
    return _connect(os.path.expandvars(place))


@functools.cache
def _connect(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _parameters(config: Config) -> Iterator[Any]:
    from mlflow.entities import Param

    for name, value in _leaves(to_dict(config)):
        if value is not None and name not in _SECRET:
            yield Param(name, str(value)[:500])


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


@contextlib.contextmanager
def _one_line_errors(log: str) -> Iterator[None]:
    """What goes wrong with the place is the user's to mend, in one line and without the password."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (as above)
        system = re.search(r"\[Errno -?\d+\] ([^\"')]+)", str(error))  # what a server's client wraps up in three lines
        reason = f"it does not answer: {system[1]}." if system else masked(first_line(error))
        raise ConfigError(f"--log {masked(log)}: {reason}") from None
