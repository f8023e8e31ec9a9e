"""report.html: the report as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from amc.reports import human
from amc.reports.facts import facts
from amc.reports.markdown import as_yaml
from amc.reports.network_figures import network_figures
from amc.reports.page import render
from amc.reports.plot import Cell, DataTable, number
from amc.reports.read import SearchHistory
from amc.reports.search_figures import search_figures
from amc.reports.table import (
    budget_lines,
    columns,
    final_table,
    leads_with_time,
    outcome,
    reported_split,
    time_ratio,
    was_trained,
)
from amc.reports.training_figures import training_figures


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, the figure, and the two values behind it."""

    name: str
    figure: str
    detail: str


def html_report(result: Mapping[str, Any], journal: SearchHistory) -> str:
    """The text of report.html. All text from the run is escaped."""
    figures = [*network_figures(result), *search_figures(result, journal), *training_figures(result, journal)]
    return render(
        "report.html.jinja",
        {
            "result": result,
            "outcome": outcome(result),
            "met": all(line["met"] for line in result["proof"]),
            "tiles": list(tiles(result)),
            "columns": columns(result),
            "rows": [(row.label, row.cells(was_trained(result))) for row in final_table(result)],
            "budget": budget_lines(result),
            "figures": figures,
            "candidates": candidates(result),
            "facts": facts(result, journal),
            "command": result.get("command"),
            "config": as_yaml(result["config"]),
        },
    )


def tiles(result: Mapping[str, Any]) -> Iterator[Tile]:
    """The four key figures: metric, MACs, size and time; time comes first if it was limited."""
    original, final, split = result["original"], result["final"], reported_split(result)
    detail = "not measured"
    if time_ratio(result) is not None:
        detail = " → ".join(human.milliseconds(stage.get("latency_ms")) for stage in (original, final))
    time = Tile("time", human.short_percent(time_ratio(result)), detail)
    if leads_with_time(result):
        yield time
    change = human.points(final[split] - original[split]).replace("-", "−")
    detail = f"{human.percent(original[split])} → {human.percent(final[split])}"
    yield Tile(f"{split} {result['metric']}, points", change, detail)
    for key, name, write in (("macs", "MACs", human.count), ("size", "model.onnx", human.size)):
        share = human.short_percent(human.quotient(final[key], original[key]))
        yield Tile(name, share, f"{write(original[key])} → {write(final[key])}")
    if not leads_with_time(result):
        yield time


def candidates(result: Mapping[str, Any]) -> DataTable | None:
    """The policies that were compared before one was chosen."""
    rows = [
        [
            Cell(str(i), i),
            number(candidate.get("before"), human.percent),
            number(candidate.get("after"), human.percent),
            Cell("chosen" if candidate["chosen"] else "", kind="met"),
            Cell(" ".join(str(item) for item in candidate["choice"]), kind="small"),
        ]
        for i, candidate in enumerate(result["candidates"], start=1)
    ]
    caption = f"{result['metric']} on the search split, before and after a brief fine-tuning"
    return DataTable("candidates", caption, ["number", "before", "after", "policy", "widths"], rows) if rows else None
