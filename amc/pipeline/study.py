"""The location of a searcher's study."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from amc.config import binding
from amc.evaluation.problem import StudyLocation
from amc.importance import criterion_files
from amc.operators.policy import fingerprint
from amc.pipeline.record import Record
from amc.runtime.plugins import file_digests


def study_place(record: Record) -> StudyLocation:
    """The location of a searcher's study: the configured storage, or else the run's folder."""
    config, name = record.config, record.config.search.study_name
    stem = f"{Path(config.model.name).name} on {Path(config.data.source).name}"
    again = sum(1 for _ in record.journal.records("correction")) - 1
    if again > 0:  # with a corrected latency model, the same proportions give other policies
        stem += f", search {again + 1}"
    if config.search.storage is None:
        return StudyLocation(str(record.folder / "study.log"), name or stem)
    settings = binding(config)
    search = {k: v for k, v in settings["search"].items() if k not in ("evaluations", "storage", "study_name")}
    task = record.task
    named = [config.model.name, config.data.source, config.objective, config.search.reward]
    files = {
        **file_digests([*named, *(config.search.operator_names or ())]),
        **criterion_files(config.search.criterion),
    }
    same = [fingerprint(task.model), dict(task.splits.provenance), settings["budget"], search, config.seed,
            config.objective, files]  # fmt: skip
    identity = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:32]
    return StudyLocation(config.search.storage, name or f"{stem}, {identity[:8]}", identity, shared=True)
