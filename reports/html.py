"""report.html: the report as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.reports import human
from amc.reports.charts import progress_chart, tradeoff_chart, widths_chart
from amc.reports.facts import facts
from amc.reports.markdown import as_yaml
from amc.reports.read import SearchHistory
from amc.reports.table import columns, final_table, outcome, reported_split, time_ratio, was_trained


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, the figure, and the two values behind it."""

    name: str
    figure: str
    detail: str


def html_report(result: Mapping[str, Any], journal: SearchHistory) -> str:
    """The text of report.html. All text from the run is escaped; only the charts are inserted as they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(human.FILTERS)
    return environment.get_template("report.html.jinja").render(
        result=result,
        outcome=outcome(result),
        met=all(line["met"] for line in result["proof"]),
        tiles=list(tiles(result)),
        columns=columns(result),
        rows=[(row.label, row.cells(was_trained(result))) for row in final_table(result)],
        charts=[(title, text, Markup(svg)) for title, text, svg in _charts(result, journal)],
        facts=facts(result, journal),
        config=as_yaml(result["config"]),
    )


def tiles(result: Mapping[str, Any]) -> Iterator[Tile]:
    """The four key figures: metric, MACs, size and time."""
    original, final, split = result["original"], result["final"], reported_split(result)
    change = human.points(final[split] - original[split]).replace("-", "−")
    detail = f"{human.percent(original[split])} → {human.percent(final[split])}"
    yield Tile(f"{split} {result['metric']}, points", change, detail)
    for key, name, write in (("macs", "MACs", human.count), ("size", "model.onnx", human.size)):
        share = human.short_percent(human.quotient(final[key], original[key]))
        yield Tile(name, share, f"{write(original[key])} → {write(final[key])}")
    detail = "not measured"
    if time_ratio(result) is not None:
        times = (human.milliseconds(stage.get("latency_ms")) for stage in (original, final))
        detail = " → ".join(times)
    yield Tile("time", human.short_percent(time_ratio(result)), detail)


def _charts(result: Mapping[str, Any], journal: SearchHistory) -> Iterator[tuple[str, str, str]]:
    """Title, explanation and SVG of every chart that has data."""
    if result["sites"]:
        yield (
            "Channels kept",
            "Each bar is a site. The filled part is the share that the policy keeps.",
            widths_chart(result),
        )
    if len(journal.evaluations) < 2:
        return
    failed = f" Failed evaluations, not shown: {journal.failed}." if journal.failed else ""
    text = (
        "The search objective of every policy before fine-tuning; lower is better. It is the mean squared difference "
        "of the logits from the original's, or the loss. A policy that is clearly worse than the best so far is "
        f"rejected after a part of the search split; what is shown of it is an estimate.{failed}"
    )
    yield "Progress of the search", text, progress_chart(journal)
    text = "The same policies against their cost. The best few are compared more closely before one is chosen."
    yield "Search objective against cost", text, tradeoff_chart(result, journal)
