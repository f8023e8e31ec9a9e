"""Read the journals of runs: evaluations, trainings and episodes of journal.jsonl, and batch.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import BundleError
from amc.runtime.files import read_bytes
from amc.runtime.journal import read_records


@dataclass(frozen=True)
class SearchPoint:
    """An evaluation that did not fail. ``number`` is its position among all evaluations of the journal, from 1."""

    number: int
    loss: float
    """The search objective: lower is better."""
    metric: float
    choice: list[Any]
    costs: Mapping[str, float]
    share: float = 1.0
    """Share of the search split that was evaluated; below 1, loss and metric are estimates."""
    rejected: bool = False
    """Whether the policy lost a race before all samples were evaluated."""
    part: str = ""
    """The part of the searcher that proposed the policy, if it has parts."""
    reward: float | None = None


@dataclass(frozen=True)
class LossCurve:
    """The losses of one training: (share of it that is done, loss)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Episode:
    """One episode of a learning agent. ``sigma`` is the deviation of its noise; losses are means over its updates."""

    number: int
    reward: float | None
    sigma: float | None
    critic_loss: float | None


@dataclass(frozen=True)
class SearchHistory:
    """What a journal holds of a run: the evaluations of its search in order, the number of failed ones, and the rest.

    ``others`` are evaluations under other budgets.
    """

    evaluations: list[SearchPoint]
    failed: int
    others: Sequence[SearchPoint] = ()
    trainings: Sequence[LossCurve] = ()
    episodes: Sequence[Episode] = ()


def read_journal(path: Path) -> SearchHistory:
    """The evaluations in journal.jsonl. Incomplete lines are skipped; without a journal there are none."""
    try:
        lines = read_bytes(path, own=True).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from None
    records = [record for record in map(_record, lines) if record]
    proposed = [record for record in records if record.get("kind") == "evaluation"]
    evaluations = list(_points(proposed))
    return SearchHistory(
        evaluations,
        failed=len(proposed) - len(evaluations),
        others=list(_points(record for record in records if record.get("kind") == "other-evaluation")),
        trainings=_trainings(records),
        episodes=_episodes(records),
    )


def _points(records: Iterable[Mapping[str, Any]]) -> Iterable[SearchPoint]:
    """The evaluations that did not fail."""
    for number, record in enumerate(records, start=1):
        if _is_number(record.get("metric")) and _is_number(record.get("loss")):
            yield SearchPoint(
                number,
                record["loss"],
                record["metric"],
                _items(record.get("choice")),
                _numbers(record.get("costs")),
                record["share"] if _is_number(record.get("share")) else 1.0,
                record.get("lost") is True,
                _text(record.get("part")),
                record["reward"] if _is_number(record.get("reward")) else None,
            )


_TRAININGS = {"training": "delivered network", "original-training": "original, trained on"}


def _trainings(records: Iterable[Mapping[str, Any]]) -> list[LossCurve]:
    """The curves of losses. A training that was started again replaces what it had recorded."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        name = _TRAININGS.get(str(record.get("kind")), "")
        if record.get("kind") == "trial-training":
            name = f"candidate {' '.join(str(item) for item in _items(record.get('choice')))}"
        done, loss = record.get("done", 0.0), record.get("loss", 0.0)
        if not name or not _is_number(done) or not _is_number(loss):
            continue
        curve = curves.setdefault(name, [])
        while curve and curve[-1][0] >= done:
            curve.pop()
        curve.append((done, loss))
    return [LossCurve(name, points) for name, points in curves.items() if len(points) > 1]


def _episodes(records: Iterable[Mapping[str, Any]]) -> list[Episode]:
    """The episodes of an agent by number; a resumed search records them again."""
    found: dict[int, Episode] = {}
    for record in records:
        number = record.get("episode")
        if record.get("kind") == "agent" and isinstance(number, int) and _is_number(number):
            values = (record.get(key) for key in ("reward", "sigma", "critic_loss"))
            found[number] = Episode(number, *(value if _is_number(value) else None for value in values))
    return [found[number] for number in sorted(found)]


@dataclass(frozen=True)
class BatchJournal:
    """The runs of the last `amc batch` command."""

    places: Mapping[str, Mapping[str, str]]
    """Run → its place in the matrix, in the order of the matrix."""
    failures: Mapping[str, str]
    """Run → why its last attempt failed. Failures of earlier commands do not count, because they may be tried again."""


def read_batch_journal(folder: Path) -> BatchJournal:
    """Read batch.jsonl. Raises BundleError."""
    path = folder / "batch.jsonl"
    if not path.is_file():
        raise BundleError(f"{folder} is not the folder of a batch: it has no batch.jsonl.")
    records = read_records(path)
    begun = [index for index, record in enumerate(records) if record["kind"] == "batch"]
    last = records[begun[-1] :] if begun else []
    try:
        places = {str(run["name"]): dict(run["place"]) for record in last[:1] for run in record["runs"]}
        ends = [(str(r["name"]), r["error"]) for r in last if r["kind"] == "end" and r["last"]]
    except (KeyError, TypeError, ValueError):
        raise BundleError(f"{path} is damaged. Move it away and run the batch command again.") from None
    return BatchJournal(places, {name: str(error) for name, error in ends if error is not None})


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _text(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in value[:60]) if isinstance(value, str) else ""


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: object) -> dict[str, float]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {key: number for key, number in pairs if _is_number(number)}


def _is_number(value: object) -> bool:
    """Whether it is a finite number in the range of a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
