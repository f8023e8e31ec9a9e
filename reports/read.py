"""Reading what runs have written beside result.json: the evaluations of journal.jsonl, and batch.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import BundleError
from amc.runtime.journal import read_records


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that did not fail. ``number`` counts all evaluations of the journal from 1."""

    number: int
    metric: float
    choice: list[Any]
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Journal:
    """The evaluations of a search in their order, and how many failed."""

    evaluations: list[Evaluation]
    failed: int


def read_journal(path: Path) -> Journal:
    """The evaluations in journal.jsonl; none without a journal. Torn lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from None
    records = [record for record in map(_record, lines) if record.get("kind") == "evaluation"]
    evaluations = [
        Evaluation(number, record["metric"], _items(record.get("choice")), _numbers(record.get("costs")))
        for number, record in enumerate(records, start=1)
        if _is_number(record.get("metric"))
    ]
    return Journal(evaluations, failed=len(records) - len(evaluations))


@dataclass(frozen=True)
class BatchJournal:
    """What a batch's last command was about."""

    places: Mapping[str, Mapping[str, str]]
    """Run → its place in the matrix, in the matrix' order."""
    failures: Mapping[str, str]
    """Run → why its last attempt ended; those that an earlier command has left may be tried again, and do not count."""


def read_batch_journal(folder: Path) -> BatchJournal:
    """What batch.jsonl says of the last command. Raises BundleError."""
    path = folder / "batch.jsonl"
    if not path.is_file():
        raise BundleError(f"{folder} holds no batch (there is no batch.jsonl).")
    records = read_records(path)
    begun = [index for index, record in enumerate(records) if record["kind"] == "batch"]
    last = records[begun[-1] :] if begun else []
    try:
        places = {str(run["name"]): dict(run["place"]) for record in last[:1] for run in record["runs"]}
        ends = [(str(r["name"]), r["error"]) for r in last if r["kind"] == "end" and r["last"]]
    except (KeyError, TypeError, ValueError):
        raise BundleError(f"{path} is damaged: move it away, and give the batch's command again.") from None
    return BatchJournal(places, {name: str(error) for name, error in ends if error is not None})


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: object) -> dict[str, float]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {key: number for key, number in pairs if _is_number(number)}


def _is_number(value: object) -> bool:
    """Neither a bool nor NaN nor infinite nor beyond what a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
