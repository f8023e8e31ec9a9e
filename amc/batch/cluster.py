"""Run a batch on a Ray cluster, each run as a task with resources. No other module imports Ray.

A task works in a folder on its node. It starts with the batch's files of its run, and sends back what it writes while
it runs. If a node dies, the next attempt continues on another node from the last state that was sent. Networks,
weights and data that are given as paths must be readable on every node.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.batch.drive import Failure, Limits, described
from amc.batch.matrix import Job
from amc.config import AUTO, Config, from_dict, to_dict, unless_auto
from amc.errors import ConfigError, ExportError, first_line
from amc.evaluation.backend import Forwarding
from amc.evaluation.score import Score
from amc.runtime.files import replacing

if TYPE_CHECKING:
    from amc.evaluation.evaluator import Evaluator
    from amc.evaluation.settings import EvaluationSettings
    from amc.space.sites import Choice

Files = dict[str, bytes]
_EVERY = 0.5  # seconds between two messages of a task
_LEAST_ROOM = 4  # minimum number of tasks submitted at a time; otherwise twice the cluster's processors
_GROWING = "journal.jsonl"
_SENT = (_GROWING, "progress.json", "checkpoint.pt", "config.yaml", "original.onnx", "profile.json")
"""Files that are sent during a run: those that the next attempt needs and those that ``amc status`` reads."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster at ``HOST:PORT``, or to the one on this machine (``auto``). Raises ConfigError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'amc-compress[ray]'.") from None
    _reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="amc")
    except Exception as error:  # noqa: BLE001  (Ray's own errors share no base class)
        raise ConfigError(f"no Ray cluster answers at {address}: {first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise ConfigError at once if no one listens at the address. Ray itself would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from None


class RayTasks:
    """A `Workforce` that executes runs on the connected cluster."""

    def __init__(self, limits: Limits, logs: Path) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        logs.mkdir(parents=True, exist_ok=True)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._limits, self._logs = limits, logs
        self._running: dict[Any, tuple[Job, int]] = {}

    def room(self) -> int:
        import ray

        return max(_LEAST_ROOM, int(2 * ray.cluster_resources().get("CPU", 0)))

    def begin(self, job: Job, attempt: int) -> Hashable:
        ref = _submit(job, attempt, self._limits, self._mailbox)
        self._running[ref] = (job, attempt)
        return ref  # type: ignore[no-any-return]

    def ended(self, seconds: float) -> list[tuple[Hashable, Failure | None]]:
        import ray

        found, _ = ray.wait(list(self._running), timeout=seconds)
        folders = {_token(job, attempt): job.folder for job, attempt in self._running.values()}
        receive_files(ray.get(self._mailbox.take.remote()), folders)
        return [(ref, _result(ref, self._running.pop(ref)[0], self._logs)) for ref in found]

    def stop(self) -> None:
        import ray

        for ref in self._running:
            ray.cancel(ref, force=True)
        ray.kill(self._mailbox)


def resources_of(job: Job, limits: Limits) -> dict[str, float]:
    """The Ray resources of a run: ``CPU`` for its threads, ``memory`` if it is limited, and those of its device."""
    memory = {"memory": float(limits.memory)} if limits.memory else {}
    return {"CPU": float(unless_auto(job.config.threads) or limits.threads or 1), **memory, **job.resources}


def check_resources(jobs: Sequence[Job], limits: Limits) -> None:
    """Raise ConfigError for a run that no node of the cluster can execute. Ray would wait forever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for job in jobs:
        needs = resources_of(job, limits)
        if not any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
            needed = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
            raise ConfigError(f"run {job.name} needs {needed}, but no node of the Ray cluster has that.")


def _token(job: Job, attempt: int) -> str:
    """The name of an attempt. Messages of earlier attempts are ignored."""
    return f"{job.name}#{attempt}"


def _submit(job: Job, attempt: int, limits: Limits, mailbox: Any) -> Any:
    import ray

    needs = resources_of(job, limits)
    options = {"num_cpus": needs.pop("CPU"), "num_gpus": needs.pop("GPU", 0), "memory": needs.pop("memory", 0),
               "resources": needs, "max_retries": 0}  # fmt: skip
    values = {**to_dict(job.config), "threads": unless_auto(job.config.threads) or limits.threads or AUTO}
    task = ray.remote(remote_run).options(**options)
    return task.remote(values, limits.memory, _contents(job.folder), _token(job, attempt), mailbox, str(Path.cwd()))


def _result(ref: Any, job: Job, logs: Path) -> Failure | None:
    """Write the files of a task that ended and return its failure. After the death of a node, it is tried again."""
    import ray

    try:
        failure, files, output = ray.get(ref)
    except ray.exceptions.OutOfMemoryError:
        return Failure("out of memory: Ray ended the run because its node had no memory left", False)
    except ray.exceptions.RayError as error:
        return Failure(f"its node or its process died ({type(error).__name__})", True)
    (job.folder / "progress.json").unlink(missing_ok=True)
    for name, content in files.items():
        _write(job.folder / name, content)
    with (logs / f"{job.name}.log").open("a", encoding="utf-8") as log:
        log.write(output)
    return failure  # type: ignore[no-any-return]


def receive_files(messages: Sequence[tuple[str, str, int, bytes]], folders: Mapping[str, Path]) -> None:
    """Write the messages of running tasks: (attempt, file, start byte, content)."""
    for token, file, start, content in messages:
        if token not in folders:
            continue  # from an attempt that has ended
        path = folders[token] / file
        if file != _GROWING:
            _write(path, content)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as journal:
            journal.truncate(start)
            journal.write(content)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _contents(folder: Path) -> Files:
    return {p.name: p.read_bytes() for p in folder.glob("*") if p.is_file() and not p.name.startswith(".")}


class RayBackend(Forwarding):
    """Scores policies on the connected cluster: ``count`` evaluators, each an actor with its own processor.

    If a node dies, its evaluator is started again on another node, and its evaluation is repeated.
    """

    def __init__(self, config: Config, evaluator: Evaluator, count: int) -> None:
        import ray

        super().__init__(evaluator)
        values = {**to_dict(config), "threads": unless_auto(config.threads) or 1}
        kind = ray.remote(RemoteEvaluator).options(num_cpus=values["threads"], max_restarts=-1, max_task_retries=3)
        self._actors = [kind.remote(values, evaluator.settings, str(Path.cwd())) for _ in range(count)]
        self._waiting = [0] * count
        self._asked: dict[Choice, tuple[int, Any]] = {}

    @property
    def races(self) -> bool:
        return False

    def announce(self, choices: Sequence[Choice]) -> None:
        """Start to score these policies, each on the evaluator with the shortest queue."""
        for choice in choices:
            if choice not in self._asked:
                index = self._waiting.index(min(self._waiting))
                self._waiting[index] += 1
                self._asked[choice] = (index, self._actors[index].score.remote(choice))

    def score(self, choice: Choice) -> Score:
        """Wait for a policy's score. Raises RuntimeError if evaluating failed, ExportError if the cluster lost it."""
        import ray

        self.announce([choice])
        index, ref = self._asked.pop(choice)
        self._waiting[index] -= 1
        try:
            return Score(*ray.get(ref))
        except ray.exceptions.RayTaskError as error:
            raise RuntimeError(first_line(error.cause or error)) from error
        except ray.exceptions.RayError as error:
            raise ExportError(f"the cluster lost an evaluation ({type(error).__name__}). Resume the run.") from None


class RemoteEvaluator:
    """An evaluator on a node, with the settings of the caller's evaluator."""

    def __init__(self, values: dict[str, Any], settings: EvaluationSettings, place: str) -> None:
        from amc.batch.worker import evaluator_of

        if Path(place).is_dir():
            os.chdir(place)
        self._folder = tempfile.TemporaryDirectory(prefix="amc-")  # for moments that are spilled to disk
        self._evaluator = evaluator_of(from_dict(values), Path(self._folder.name), settings)

    def score(self, choice: Choice) -> tuple[float, float]:
        """Loss and metric."""
        found = self._evaluator.score(choice)
        return found.loss, found.metric


class Mailbox:
    """An actor that stores the messages of tasks until the batch takes them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str, int, bytes]] = []

    def put(self, messages: list[tuple[str, str, int, bytes]]) -> None:
        """Add messages."""
        self._messages += messages

    def take(self) -> list[tuple[str, str, int, bytes]]:
        """All messages since the last call."""
        taken, self._messages = self._messages, []
        return taken


class Courier:
    """A monitor in a task that sends changed files of the run's folder, without waiting for an answer."""

    def __init__(self, folder: Path, token: str, mailbox: Any) -> None:
        self._folder, self._token, self._mailbox = folder, token, mailbox
        self._sent: dict[str, tuple[int, int]] = {}
        self._last = 0.0

    def begin(self, stage: str) -> None:
        self._send()

    def progress(self, share: float, note: str = "") -> None:
        if time.monotonic() - self._last > _EVERY:
            self._send()

    def end(self, seconds: float) -> None:
        self._send()

    def say(self, text: str) -> None:
        print(text)

    def _send(self) -> None:
        self._last = time.monotonic()
        messages = []
        for file in (*_SENT, *(path.name for path in self._folder.glob("checkpoint.*.pt"))):
            path = self._folder / file
            with contextlib.suppress(FileNotFoundError):
                state = (path.stat().st_size, path.stat().st_mtime_ns)
                before = self._sent.get(file, (0, 0))
                if state == before:
                    continue
                content = path.read_bytes()
                start = before[0] if file == _GROWING else 0
                messages.append((self._token, file, start, content[start:]))
                self._sent[file] = (len(content), state[1])
        if messages:
            self._mailbox.put.remote(messages)


def remote_run(
    values: dict[str, Any], memory: int, files: Files, token: str, mailbox: Any, place: str
) -> tuple[Failure | None, Files, str]:
    """Execute a run on a node, in a temporary folder. Returns the failure or None, the files and the output."""
    import traceback

    import torch

    from amc.batch.worker import keeping_to, work

    if Path(place).is_dir():
        os.chdir(place)
    torch.set_num_threads(max(1, int(values.get("threads") or 1)))
    with tempfile.TemporaryDirectory(prefix="amc-") as temporary:
        folder = Path(temporary, *Path(str(values["out"])).parts[-2:])  # the same name as in the batch
        for file, content in files.items():
            _write(folder / file, content)
        failure, output = None, f"on {socket.gethostname()}, process {os.getpid()}\n"
        try:
            config = from_dict({**values, "out": str(folder)})
            work(keeping_to(memory, config) if memory else config, Courier(folder, token, mailbox))
        except Exception as error:  # noqa: BLE001  (reported as the failure of this run)
            failure, output = described(error), output + "".join(traceback.format_exception(error))
        sys.stdout.flush()
        return failure, _contents(folder) if folder.exists() else {}, output
