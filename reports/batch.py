"""The report of a batch: a table and a page, made from the batch's journal and the folders of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from amc.deploy.result import read_result
from amc.errors import BundleError
from amc.reports import human
from amc.reports.charts import front_chart
from amc.reports.read import read_batch_journal
from amc.reports.table import outcome, reported_split
from amc.runtime.files import write_text

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
        return BatchRow(place, ["–", "none", *["–"] * (len(COLUMNS) - 3), runs], None)
    original, final, split = found.result["original"], found.result["final"], reported_split(found.result)
    spent = times(found.result)
    cells = [
        ", ".join(found.place[axis] for axis in CHOICES if axis in found.place) or "–",
        human.percent(final[split]),
        human.percent(original[split]),
        human.short_percent(human.quotient(final["macs"], original["macs"])),
        human.size(final["size"]),
        f"{human.milliseconds(spent.final)} ({human.ratio(spent.ratio)})",
        runs,
    ]
    return BatchRow(place, cells, found)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front of (cost, score) points, by rising cost.

    >>> front([(1.0, 0.5), (2.0, 0.4), (3.0, 0.9)])
    [0, 2]
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    for index in order:
        if not found or points[index][1] > points[found[-1]][1]:
            found.append(index)
    return found


def _charts(networks: Sequence[Network]) -> Iterator[tuple[str, str]]:
    """Title and SVG of each chart: the metric against time and against MACs, for every data set and device."""
    groups: dict[tuple[str, ...], list[Network]] = {}
    for network in networks:
        if network.result is not None:
            data = str(network.result["data"]["source"])
            groups.setdefault((data, network.place.get("device", "")), []).append(network)
    for (data, device), members in groups.items():
        where = f"{data}, {device}" if device else data
        results = [n.result for n in members if n.result is not None]
        metric = str(results[0]["metric"])
        for label, points in (("milliseconds", _timed(results)), ("MACs, millions", _counted(results))):
            if len(set(points)) > 1:
                chart = front_chart(points, [points[i] for i in front(points)], label, metric, f"{where}-{label[:4]}")
                yield f"{metric} against {label.partition(',')[0]}: {where}", chart


def _timed(results: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Milliseconds and metric of all networks, including the originals."""
    spent = [(r, which, getattr(times(r), which)) for r in results for which in ("original", "final")]
    return [(ms, r[which][reported_split(r)]) for r, which, ms in spent if ms is not None]


def _counted(results: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Millions of MACs and metric of all networks, including the originals."""
    return [(1e-6 * r[which]["macs"], r[which][reported_split(r)]) for r in results for which in ("original", "final")]


def html_batch(name: str, networks: Sequence[Network]) -> str:
    """The text of batch.html. All text from the runs is escaped; only the charts are inserted as they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
                              autoescape=True, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    rows = batch_rows(networks)
    return environment.get_template("batch.html.jinja").render(
        name=name,
        axes=list(rows[0].place) if rows else [],
        columns=COLUMNS,
        rows=rows,
        done=[(n, outcome(n.result), f"{quote(n.name)}/report.html") for n in networks if n.result is not None],
        failed=[n for n in networks if n.reason],
        waiting=[n for n in networks if n.result is None and not n.reason],
        charts=[(title, Markup(svg)) for title, svg in _charts(networks)],
    )


def write_batch_report(folder: Path) -> None:
    """Write batch.html into the batch's folder. Raises BundleError."""
    networks = read_batch(folder)
    write_text(folder / "batch.html", html_batch(folder.resolve().name, networks))
