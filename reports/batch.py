"""The networks of a batch and its table, read from the batch's journal and the folders of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.deploy.result import read_result
from amc.errors import BundleError
from amc.reports import human
from amc.reports.read import read_batch_journal
from amc.reports.table import reported_split

CHOICES = ("searcher", "seed")
"""Axes over which the best network is chosen. The table has one row for each combination of the others."""


@dataclass(frozen=True)
class Network:
    """One run of a batch: its place in the matrix, and its result or the reason for having none."""

    name: str
    place: Mapping[str, str]
    result: Mapping[str, Any] | None
    reason: str
    """Why the run failed. Empty if it did not fail or has not been tried yet."""

    @property
    def met(self) -> bool:
        """Whether the exported model meets every limit."""
        return self.result is not None and all(line["met"] for line in self.result["proof"])

    @property
    def group(self) -> tuple[tuple[str, str], ...]:
        """Its row in the table: its place without the axes in `CHOICES`."""
        return tuple((axis, name) for axis, name in self.place.items() if axis not in CHOICES)


@dataclass(frozen=True)
class BatchRow:
    """One row of the batch's table, as text. ``best`` is its network, if there is one."""

    place: Mapping[str, str]
    cells: Sequence[str]
    best: Network | None
    values: Sequence[float | None]
    """The numbers in the cells, for sorting."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one inference of both networks, and final / original. None if not measured."""

    original: float | None
    final: float | None
    ratio: float | None


def times(result: Mapping[str, Any]) -> Times:
    """Times measured by the run; for a device with its own latency model, that model's predictions."""
    latency, original, final = result.get("latency") or {}, result["original"], result["final"]
    prediction = latency.get("prediction")
    proof = next((line for line in result["proof"] if line["resource"] == "latency"), None)
    if proof is not None and isinstance(prediction, Mapping) and prediction.get("model") != "profile":
        before = prediction.get("original_ms")
        if isinstance(before, float):
            return Times(before, proof["exported"], human.quotient(proof["exported"], before))
    ratio = latency["ratio"]["value"] if latency else None
    return Times(original.get("latency_ms"), final.get("latency_ms"), ratio)


COLUMNS = ("found by", "metric", "original", "MACs", "model.onnx", "time", "runs done")
"""Found by: searcher and seed of the best network. Time: ms of one inference, and the ratio to the original's."""


def read_batch(folder: Path) -> list[Network]:
    """The runs of a batch, in the order of the matrix. Raises BundleError."""
    batch = read_batch_journal(folder)
    return [_network(folder, name, place, batch.failures.get(name, "")) for name, place in batch.places.items()]


def _network(folder: Path, name: str, place: Mapping[str, str], reason: str) -> Network:
    path = folder / name / "result.json"
    if not path.exists():
        return Network(name, place, None, reason)
    try:
        return Network(name, place, read_result(path), "")
    except BundleError as error:
        return Network(name, place, None, str(error))


def best(networks: Sequence[Network]) -> Network | None:
    """The network that meets its budget and has the best metric on the search split. None if no network does."""
    good = [n for n in networks if n.result is not None and n.met]
    return max(good, key=lambda n: n.result["final"]["search"], default=None)  # type: ignore[index]


def batch_rows(networks: Sequence[Network]) -> list[BatchRow]:
    """The table: the best network for every model, data set, device and budget."""
    groups: dict[tuple[tuple[str, str], ...], list[Network]] = {}
    for network in networks:
        groups.setdefault(network.group, []).append(network)
    return [_row(dict(group), members) for group, members in groups.items()]


def _row(place: Mapping[str, str], members: Sequence[Network]) -> BatchRow:
    found, done = best(members), sum(m.result is not None for m in members)
    runs = f"{done} of {len(members)}"
    if found is None or found.result is None:
        nothing = ["–", "none", *["–"] * (len(COLUMNS) - 3), runs]
        return BatchRow(place, nothing, None, [*[None] * (len(COLUMNS) - 1), done])
    original, final, split = found.result["original"], found.result["final"], reported_split(found.result)
    spent, macs = times(found.result), human.quotient(final["macs"], original["macs"])
    cells = [
        ", ".join(found.place[axis] for axis in CHOICES if axis in found.place) or "–",
        human.percent(final[split]),
        human.percent(original[split]),
        human.short_percent(macs),
        human.size(final["size"]),
        f"{human.milliseconds(spent.final)} ({human.ratio(spent.ratio)})",
        runs,
    ]
    return BatchRow(place, cells, found, [None, final[split], original[split], macs, final["size"], spent.final, done])
