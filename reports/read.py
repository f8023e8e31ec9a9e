"""Reading what runs have written: result.json, checked and cleaned; the evaluations of journal.jsonl; batch.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import BundleError
from amc.runtime.journal import read_records

_MEASURED = {
    "search": float,
    "test?": float,
    "macs": float,
    "params": float,
    "size": float,
    "memory": float,
    "branches?": float,
    "latency_ms?": float,
}
_TIMES = {"original": float, "final": float}
_RATIO = {"value": float, "low": float, "high": float}

RESULT = {
    "task": str,
    "model": {"name": str, "fingerprint": str},
    "data": {"source": str, "splits": dict},
    "metric": str,
    "budget": {"asked": dict, "limits": dict},
    "original": _MEASURED,
    "pruned": {"search?": float},
    "final": _MEASURED,
    "latency?": {
        "threads": int,
        "rounds": int,
        "min_ms": _TIMES,
        "p10_ms": _TIMES,
        "median_ms": _TIMES,
        "ratio": _RATIO,
    },
    "int8?": {
        "setting": str,
        "search": float,
        "test": float,
        "size": float,
        "latency_ms": float,
        "ratio": _RATIO,
        "ratio_to_final": _RATIO,
        "in_float": [str],
        "layers": int,
        "tried": [{"setting": str, "search": float, "ratio": float, "in_float": int}],
    },
    "proof": [
        {"resource": str, "unit": str, "limit": float, "exported": float, "met": bool, "how": str},
    ],
    "parity": {"samples": int, "largest_difference": float},
    "sites": [{"name": str, "width": float, "of": float}],
    "search": {"searcher": str, "evaluations": int, "criterion": str, "reward": str},
    "candidates": [{"choice": list, "before?": float, "after?": float, "chosen": bool}],
    "stages": [{"name": str, "seconds": float}],
    "notes": [str],
    "environment": {"versions": dict},
    "config": dict,
}
"""What a report needs of result.json: a type, [an item's shape] or the shapes by key (``?``: or null)."""

_A = {
    str: "a text",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


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


def read_result(path: Path) -> dict[str, Any]:
    """The content of result.json, with every text on one line and printable. Raises BundleError."""
    try:
        result = _clean(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not JSON.") from None
    if not isinstance(result, dict) or (result.get("format"), result.get("version")) != ("amc-result", 1):
        raise BundleError(f"{path} is not a result of amc, version 1.")
    try:
        _check(result, RESULT, "")
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}.") from None
    return result


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


def _check(value: Any, shape: Any, where: str) -> None:
    """Raise ValueError, naming the place, unless ``value`` has the shape (see ``RESULT``)."""
    kind = shape if isinstance(shape, type) else type(shape)
    if not (_is_number(value) if kind in (int, float) else isinstance(value, kind)):
        raise ValueError(f"{where or 'it'} is not {_A[kind]}")
    if isinstance(shape, list):
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}[{index}]")
    if isinstance(shape, dict):
        for key, inner in shape.items():
            name = key.rstrip("?")
            if key.endswith("?") and value.get(name) is None:
                continue
            _check(value.get(name), inner, f"{where}.{name}".lstrip("."))


def _clean(value: Any) -> Any:
    """``value`` with what is unprintable in its texts (line ends, controls, lone surrogates) made spaces."""
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else " " for character in value)
    return value
