"""The state that the stages of a run share: the task, the folder and its journal of finished work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from amc.config import RECIPES, Config, binding, public, to_dict, unless_auto
from amc.errors import BundleError
from amc.evaluation.memo import Memo, open_cache
from amc.latency.instruments import Instruments
from amc.operators.policy import fingerprint
from amc.pipeline.trust import sign
from amc.runtime.files import write_text
from amc.runtime.journal import Journal
from amc.runtime.locks import MeasurementLock
from amc.runtime.monitor import Monitor
from amc.space.sites import Choice, PolicyGrid
from amc.task import Task
from amc.train import (
    BEFORE_TRAINING,
    NO_TRAINING,
    Phase,
    Plan,
    asked_precision,
    fastest_precision,
    make_plan,
    phases,
    training_task,
)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


class Record:
    """One run in its folder."""

    def __init__(
        self,
        task: Task,
        config: Config,
        folder: Path,
        journal: Journal,
        monitor: Monitor,
        lock: MeasurementLock,
        instruments: Instruments | None = None,
    ) -> None:
        """``instruments`` time networks; None: ONNX Runtime on this machine."""
        self.task, self.config, self.folder = task, config, folder
        self.journal, self.monitor, self.lock = journal, monitor, lock
        self.instruments = instruments or Instruments.usual()
        self.memo = Memo(open_cache(config, lock.released), task, config)
        """Results that are shared with other runs."""
        identity = self._identity()
        # written before the journal, so that every folder with a journal can be resumed
        write_text(folder / "config.yaml", yaml.safe_dump(public(to_dict(config)), sort_keys=False))
        if journal.last("run") is None:
            journal.append("run", **identity)
        sign(folder, config, journal)
        trouble = self.memo.cache.trouble()
        for note in (*task.splits.notes, *([f"warning: {trouble}"] if trouble else [])):
            monitor.say(note)
        monitor.say(f"{task.name}: {task.splits.summary()}")
        monitor.say(
            f"everything is written to {folder} (to continue after an interruption: amc search --resume {folder})"
        )

    def _identity(self) -> dict[str, Any]:
        """The network, configuration and splits. Raises BundleError if the folder was started with others."""
        identity = {
            "fingerprint": fingerprint(self.task.model),
            "config": _digest(binding(self.config)),
            "splits": dict(self.task.splits.provenance),
        }
        before = self.journal.last("run") or identity
        if before.get("config") == _digest(binding(self.config, mask=False)):  # of version 0.1
            identity["config"] = before["config"]
        for part, now in identity.items():
            if before.get(part) != now:
                word = {"fingerprint": "network", "config": "configuration", "splits": "data"}[part]
                raise BundleError(f"{self.folder} was started with another {word}: use another --out.")
        return identity

    def fit(self, batch: int) -> None:
        """Set the largest number of samples in one forward pass."""
        self.task = replace(self.task, batch=batch)
        self.memo = Memo(self.memo.cache, self.task, self.config)

    def step(self, share: float, note: str = "") -> None:
        """Called after every step: wait while another process measures latency, then show the stage's progress."""
        self.lock.give_way()
        self.monitor.progress(share, note)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show, time and record a stage. Time spent before an interruption counts."""
        start = time.perf_counter()
        self.monitor.begin(name)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with contextlib.suppress(OSError):  # a full disk may have stopped the stage
                self.journal.append("stage", name=name, seconds=round(seconds, 3))
        self.monitor.end(seconds)

    def optional_stage(self, name: str, wanted: bool) -> contextlib.AbstractContextManager[None]:
        """`stage` if it is ``wanted``; otherwise nothing is shown."""
        return self.stage(name) if wanted else contextlib.nullcontext()

    def once(self, kind: str, find: Callable[[], Any]) -> Any:
        """The value in the journal's last record of this kind. If there is none, ``find`` is called and recorded."""
        known = self.journal.last(kind)
        if known is None:
            found = find()
            self.journal.append(kind, found=found)
            return found
        return known["found"]

    @property
    def training_task(self) -> Task:
        """The task whose training split has the samples that the settings train on."""
        return training_task(self.config.finetune, self.task)

    @property
    def epochs(self) -> float:
        """Epochs of training after pruning: the user's number, or one that suits the data."""
        if self.config.finetune.recover == NO_TRAINING:
            return 0.0
        finetune = self.config.finetune
        objective = self.task.objective
        if finetune.recipe == "none" and objective.logits is None and not objective.without_labels:  # no soft targets
            return 0.0
        asked = unless_auto(finetune.epochs)
        return RECIPES[finetune.recipe].length * self.task.splits.epochs if asked is None else asked

    @property
    def training_stage(self) -> str:
        """The name of the stage that trains the pruned network."""
        no_labels = self.config.finetune.recipe == "none" or self.task.objective.without_labels
        return "distil" if no_labels else "fine-tune"

    @property
    def trains_original(self) -> bool:
        """Whether the original is trained further, too, for comparison."""
        without_labels = self.task.objective.without_labels  # then the original has nothing to learn
        return self.config.finetune.train_original and self.epochs > 0 and not without_labels

    def precision(self) -> str:
        """The precision of training, as chosen or configured."""
        known = self.journal.last("precision")
        return str(known["found"]) if known else self.config.finetune.precision

    def phases(self, grid: PolicyGrid, chosen: Choice) -> list[Phase]:
        """The phases of the schedule: in each, prune to a policy and train for some epochs; the last is ``chosen``."""
        finetune = self.config.finetune
        return phases(finetune.schedule, finetune.schedule_options, grid, chosen, self.epochs)

    def plan(self, epochs: float, model: nn.Module) -> Plan:
        """The plan for a training of this many epochs with the run's settings."""
        task = self.training_task
        plan = make_plan(self.config.finetune, task, epochs, self.config.seed)
        precision = asked_precision(self.config.finetune)
        if precision is None:
            precision = self.once("precision", lambda: fastest_precision(model, task, plan, task.model))
        if self.config.finetune.schedule == BEFORE_TRAINING:  # the untrained original cannot be a teacher
            plan = replace(plan, distillation=0.0)
        return replace(plan, precision=precision)

    def seconds(self) -> list[dict[str, Any]]:
        """The stages so far, each with its seconds over all attempts."""
        seconds: dict[str, float] = {}
        for record in self.journal.records("stage"):
            seconds[record["name"]] = seconds.get(record["name"], 0.0) + record["seconds"]
        return [{"name": name, "seconds": round(total, 2)} for name, total in seconds.items()]
