"""The charts of report.html: inline SVG with real text, in the colours of the page's CSS variables."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import accumulate
from typing import Any

from amc.reports.human import exact, quotient
from amc.reports.read import SearchHistory, SearchPoint
from amc.reports.table import NAMES, budgeted

Draw = Callable[[Any], None]
"""Draws on matplotlib axes."""

INK, MUTED, LINE, ACCENT, CHOSEN = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", CHOSEN: "chosen"}
_POINTS = {"s": 28, "color": ACCENT, "alpha": 0.6, "linewidths": 0}
_HOLLOW = {"s": 26, "facecolor": "none", "edgecolor": ACCENT, "linewidths": 1.2}
_CROSS = {"s": 18, "color": MUTED, "marker": "x", "linewidths": 1, "alpha": 0.7}
_RING = {"s": 90, "facecolor": "none", "edgecolor": CHOSEN, "linewidths": 2}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def widths_chart(result: Mapping[str, Any]) -> str:
    """The share kept at every site: one bar per site, filled by the share."""
    sites = result["sites"]
    step = 20 if len(sites) <= 30 else 16
    label = f"Share kept at each of {len(sites)} sites"
    return _svg("widths", label, 60 + step * len(sites), partial(_draw_widths, sites))


def _draw_widths(sites: Sequence[Mapping[str, Any]], axes: Any) -> None:
    rows = range(len(sites))
    axes.barh(rows, [100] * len(sites), color=LINE, height=0.72)
    axes.barh(rows, [_percent(site["width"], site["of"]) for site in sites], color=ACCENT, height=0.72)
    axes.set_yticks(rows, [_shortened(site["name"]) for site in sites], color=INK)
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("kept, % of the original")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, site in zip(rows, sites, strict=True):
        text = f"{exact(site['width'])} of {exact(site['of'])}"
        axes.annotate(text, (100, row), (8, 0), textcoords="offset points", va="center", color=MUTED)


def progress_chart(journal: SearchHistory) -> str:
    """The search objective of every evaluation and the best so far, against the number of the evaluation."""
    draw = partial(_draw_progress, journal.evaluations)
    return _svg("progress", "The search objective of every evaluation", 300, draw)


def _draw_progress(evaluations: Sequence[SearchPoint], axes: Any) -> None:
    _draw_points(axes, evaluations, [e.number for e in evaluations])
    accepted = [e for e in evaluations if not e.rejected]
    best = list(accumulate((e.loss for e in accepted), min))
    axes.step([e.number for e in accepted], best, where="post", color=ACCENT, label="best so far")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("evaluation")
    _finish_losses(axes, evaluations)


def tradeoff_chart(result: Mapping[str, Any], journal: SearchHistory) -> str:
    """The search objective of every evaluation against its share of the limited resource. The chosen one is marked."""
    resource = budgeted(result)[0]
    original = result["original"][resource]
    limits = [line["limit"] for line in result["proof"] if line["resource"] == resource]
    known = [e for e in journal.evaluations if resource in e.costs]
    chosen = [candidate["choice"] for candidate in result["candidates"] if candidate["chosen"]]
    tradeoff = _Tradeoff(
        resource,
        known,
        [_percent(e.costs[resource], original) for e in known],
        next((i for i, e in enumerate(known) if e.choice in chosen), None),
        [_percent(limit, original) for limit in limits],
    )
    return _svg("tradeoff", f"The search objective against {NAMES[resource]}", 300, tradeoff.draw)


@dataclass(frozen=True)
class _Tradeoff:
    """The data of the trade-off chart. Shares and limits are percentages of the original's cost."""

    resource: str
    evaluations: Sequence[SearchPoint]
    shares: Sequence[float]
    chosen: int | None
    """Index of the evaluation of the chosen policy."""
    limits: Sequence[float]

    def draw(self, axes: Any) -> None:
        _draw_points(axes, self.evaluations, self.shares)
        if self.chosen is not None:
            place, loss = self.shares[self.chosen], self.evaluations[self.chosen].loss
            axes.scatter([place], [loss], label="chosen", **_RING)
        for limit in self.limits:
            axes.axvline(limit, color=MUTED, linestyle="--", label="limit")
        axes.set_xlabel(f"{NAMES[self.resource]}, % of the original")
        _finish_losses(axes, self.evaluations)


def _draw_points(axes: Any, found: Sequence[SearchPoint], places: Sequence[float]) -> None:
    """Draw one point per evaluation: filled for exact scores, hollow for estimates, a cross for rejected policies."""
    kinds: dict[str, tuple[dict[str, Any], list[bool]]] = {
        "all samples read": (_POINTS, [e.share >= 1 and not e.rejected for e in found]),
        "estimated from a part": (_HOLLOW, [e.share < 1 and not e.rejected for e in found]),
        "rejected": (_CROSS, [e.rejected for e in found]),
    }
    for label, (style, chosen) in kinds.items():
        if any(chosen):
            losses = [e.loss for e, mine in zip(found, chosen, strict=True) if mine]
            axes.scatter([x for x, mine in zip(places, chosen, strict=True) if mine], losses, label=label, **style)


def _finish_losses(axes: Any, found: Sequence[SearchPoint]) -> None:
    """Finish an axis of search objectives. It is logarithmic if all values are above 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if found and min(e.loss for e in found) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _finish(axes, "search objective")


def front_chart(
    points: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]], cost: str, metric: str, name: str
) -> str:
    """Networks as (cost, metric) points, and the line of the Pareto front ``best``."""
    return _svg(name, f"{metric} against {cost}", 300, partial(_draw_front, points, best, cost, metric))


def _draw_front(
    points: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]], cost: str, metric: str, axes: Any
) -> None:
    axes.scatter([x for x, _ in points], [100 * y for _, y in points], label="network", **_POINTS)
    axes.plot([x for x, _ in best], [100 * y for _, y in best], color=CHOSEN, label="front")
    axes.set_xlabel(cost)
    _finish(axes, f"{_shortened(metric)}, %")


def _finish(axes: Any, measured: str) -> None:
    axes.set_ylabel(measured)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, borderaxespad=0, labelcolor=MUTED)


def _percent(part: float, whole: float) -> float:
    return 100 * (quotient(part, whole) or 0.0)


def _shortened(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _svg(name: str, label: str, height: int, draw: Draw) -> str:
    """An ``<svg>`` element of size 720 × ``height``. The same drawing gives the same bytes."""
    from matplotlib import style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with style.context(["default", {**_STYLE, "svg.hashsalt": f"amc-{name}"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(10, height / 72), layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inlined(buffer.getvalue(), label, height)


def _inlined(document: str, label: str, height: int) -> str:
    """The body of matplotlib's SVG document in a new element, with theme colours and without unused ids."""
    body = document[document.index(">", document.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg viewBox="0 0 720 {height}" role="img" aria-label="{escape(label)}">{body}'
