"""batch.html: the page of a batch, with a matrix of devices and budgets, fronts that can be filtered, and all runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from amc.reports import human
from amc.reports.batch import COLUMNS, BatchRow, Network, Times, batch_rows, read_batch, times
from amc.reports.page import render
from amc.reports.plot import Cell, DataTable, Figure, Plot, Point, Scale, axis
from amc.reports.search_figures import front
from amc.reports.table import outcome, reported_split
from amc.runtime.files import write_text

COLOURS = 6


@dataclass(frozen=True)
class Choices:
    """One axis of the matrix as a filter: its values, each with the tag that its points have."""

    axis: str
    values: Sequence[tuple[str, str]]


def filters(networks: Sequence[Network]) -> list[Choices]:
    """The axes that have several values."""
    names = list(networks[0].place) if networks else []
    found = []
    for number, name in enumerate(names):
        values = list(dict.fromkeys(n.place.get(name, "") for n in networks))
        if len(values) > 1:
            found.append(Choices(name, [(value, f"a{number}v{i}") for i, value in enumerate(values)]))
    return found


def _tags(network: Network, chosen: Sequence[Choices]) -> tuple[str, ...]:
    return tuple(tag for one in chosen for value, tag in one.values if network.place.get(one.axis, "") == value)


def _link(network: Network) -> str:
    return quote(network.name, errors="replace") + "/report.html"


def matrices(rows: Sequence[BatchRow]) -> list[DataTable]:
    """Devices × budgets, one table for each combination of the other axes; none if there is one field only."""
    tables: dict[tuple[tuple[str, str], ...], list[BatchRow]] = {}
    for row in rows:
        rest = tuple((axis, name) for axis, name in row.place.items() if axis not in ("device", "budget"))
        tables.setdefault(rest, []).append(row)
    if all(len(members) < 2 for members in tables.values()):
        return []
    return [
        _matrix(", ".join(name for _, name in rest), members, i) for i, (rest, members) in enumerate(tables.items())
    ]


def _matrix(name: str, rows: Sequence[BatchRow], number: int) -> DataTable:
    budgets = list(dict.fromkeys(row.place.get("budget", "") for row in rows))
    devices = list(dict.fromkeys(row.place.get("device", "") for row in rows))
    fields = {(row.place.get("device", ""), row.place.get("budget", "")): _field(row) for row in rows}
    body = [[Cell(device or "this machine"), *(fields.get((device, budget), Cell("")) for budget in budgets)]
            for device in devices]  # fmt: skip
    caption = f"The best network of each device and budget{f': {name}' if name else ''}"
    return DataTable(f"matrix-{number + 1}", caption, ["device", *(budget or "metric" for budget in budgets)], body)


def _field(row: BatchRow) -> Cell:
    """The metric and the time of the best network, with a link to its report."""
    if row.best is None:
        return Cell(f"none ({row.cells[-1]} done)", kind="missed")
    text = f"{row.cells[1]}, {human.milliseconds(row.values[5])}"
    return Cell(text, row.values[1], "final wrap", _link(row.best))


def table(rows: Sequence[BatchRow]) -> DataTable:
    """The best network for every model, data set, device and budget."""
    axes = list(rows[0].place) if rows else []
    body = [
        [Cell(row.place.get(axis, "")) for axis in axes]
        + [
            Cell(text, value, ("final" if row.best else "missed") if i == 1 else "",
                 _link(row.best) if i == 1 and row.best else "")
            for i, (text, value) in enumerate(zip(row.cells, row.values, strict=True))
        ]
        for row in rows
    ]  # fmt: skip
    return DataTable("best", "The best networks", [*axes, *COLUMNS], body)


def fronts(networks: Sequence[Network], chosen: Sequence[Choices]) -> Iterator[Figure]:
    """The metric against time and against MACs, for every data set and device."""
    groups: dict[tuple[str, ...], list[Network]] = {}
    for network in networks:
        if network.result is not None:
            data = str(network.result["data"]["source"])
            groups.setdefault((data, network.place.get("device", "")), []).append(network)
    number = 0
    for (data, device), members in groups.items():
        for cost in (_milliseconds, _million_macs):
            figure = _front(members, cost, f"front-{number}", f"{data}, {device}" if device else data, chosen)
            if figure is not None:
                number += 1
                yield figure


def _milliseconds(result: Mapping[str, Any], which: str) -> float | None:
    found: Times = times(result)
    return found.original if which == "original" else found.final


def _million_macs(result: Mapping[str, Any], which: str) -> float | None:
    return 1e-6 * float(result[which]["macs"])


def _front(networks: Sequence[Network], cost: Any, name: str, where: str, chosen: Sequence[Choices]) -> Figure | None:
    """The chart of one cost; None if there is nothing to compare."""
    label, short = ("milliseconds", "time") if cost is _milliseconds else ("MACs, millions", "MACs")
    metric = str(networks[0].result["metric"]) if networks[0].result else ""
    found = [(n, which, x, n.result[which][reported_split(n.result)])
             for n in networks if n.result is not None for which in ("original", "final")
             if (x := cost(n.result, which)) is not None]  # fmt: skip
    if len({(x, y) for _, _, x, y in found}) < 2:
        return None
    scale = Scale(axis(label, [x for _, _, x, _ in found]), axis(f"{metric}, %", [100 * y for *_, y in found]))
    kinds, legend = _colours(networks, chosen)
    marks = list[Point]()
    for n, which, x, y in found:
        kind = "hollow" if which == "original" else kinds[n.name]
        tip = f"{n.name}{', original' if which == 'original' else ''}: {human.percent(y)} at {x:.4g} {label}"
        marks.append(scale.point(x, 100 * y, tip, kind, _tags(n, chosen)))
    best = front([(x, -y) for _, _, x, y in found])
    line = scale.line([(found[i][2], 100 * found[i][3]) for i in best], "front")
    plot = Plot(f"{metric} against {short}: {where}", scale.x, scale.y, marks, [line],
                legend=[*legend, ("point", "hollow", "original"), ("line", "front", "front")])  # fmt: skip
    rows = [[Cell(n.name, link=_link(n)), Cell(which), Cell(f"{x:.4g}", x), Cell(human.percent(y), y),
             Cell("yes" if i in best else "")] for i, (n, which, x, y) in enumerate(found)]  # fmt: skip
    text = (
        "All pruned networks and the originals. The line is the Pareto front: no other network is better on both axes."
    )
    title, head = f"{metric} against {short}", ["run", "network", label, metric, "on the front"]
    return Figure(name, f"{title}: {where}", text, DataTable(name, title, head, rows), [plot])


def _colours(
    networks: Sequence[Network], chosen: Sequence[Choices]
) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """How the networks are drawn: in the colour of their model, or of the first axis that has several values."""
    order = sorted(chosen, key=lambda one: ("model", "budget", "searcher").index(one.axis)
                   if one.axis in ("model", "budget", "searcher") else 3)  # fmt: skip
    order = [one for one in order if len({n.place.get(one.axis) for n in networks}) > 1]
    if not order:
        return {n.name: "full" for n in networks}, [("point", "full", "network")]
    values = [value for value, _ in order[0].values]
    kinds = {n.name: f"full p{values.index(n.place.get(order[0].axis, '')) % COLOURS}" for n in networks}
    used = {n.place.get(order[0].axis, "") for n in networks}
    return kinds, [("point", f"full p{i % COLOURS}", value) for i, value in enumerate(values) if value in used]


def html_batch(name: str, networks: Sequence[Network]) -> str:
    """The text of batch.html. All text from the runs is escaped."""
    rows, chosen = batch_rows(networks), filters(networks)
    done = [(n, outcome(n.result)) for n in networks if n.result is not None]
    return render(
        "batch.html.jinja",
        {
            "name": name,
            "count": len(networks),
            "matrices": matrices(rows),
            "best": table(rows),
            "done": DataTable("networks", "All networks", ["run", "outcome"], [
                [Cell(n.name, link=_link(n)), Cell(text, kind="" if n.met else "missed")] for n, text in done
            ]),
            "failed": DataTable("failed", "Failed runs", ["run", "reason"],
                            [[Cell(n.name), Cell(n.reason, kind="missed")] for n in networks if n.reason]),
            "waiting": [n for n in networks if n.result is None and not n.reason],
            "filters": chosen,
            "figures": list(fronts(networks, chosen)),
        },
    )  # fmt: skip


def write_batch_report(folder: Path) -> None:
    """Write batch.html into the batch's folder. Raises BundleError."""
    networks = read_batch(folder)
    write_text(folder / "batch.html", html_batch(folder.resolve().name, networks))
