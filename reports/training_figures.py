"""Figures about what training and pruning changed: curves of losses, and the answers that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amc.reports import human
from amc.reports.network_figures import shade
from amc.reports.plot import Cell, DataTable, Figure, Plot, Scale, axis, number
from amc.reports.read import LossCurve, SearchHistory

MOST_CURVES = 6


def training_figures(result: Mapping[str, Any], journal: SearchHistory) -> Iterator[Figure]:
    """The figures for which there is data."""
    if journal.trainings:
        yield curves(journal.trainings)
    if result.get("answers"):
        yield answers(result)


def curves(trainings: Sequence[LossCurve]) -> Figure:
    """The running loss of every training."""
    order = sorted(trainings, key=lambda curve: curve.name != "delivered network")
    shown = order[:MOST_CURVES]
    losses = [loss for curve in shown for _, loss in curve.points]
    scale = Scale(axis("share of its training, %", [0.0, 100.0]), axis("training loss", losses, log=True))
    marks = [scale.point(100 * done, loss, f"{curve.name}, {100 * done:.0f} %: loss {loss:.4g}", "full")
             for curve in shown for done, loss in curve.points]  # fmt: skip
    plot = Plot(
        "The running loss of every training", scale.x, scale.y, marks,
        [scale.line([(100 * done, loss) for done, loss in curve.points], f"s{i}") for i, curve in enumerate(shown)],
        legend=[("line", f"s{i}", curve.name) for i, curve in enumerate(shown)],
    )  # fmt: skip
    rows = [[Cell(curve.name), number(done, human.short_percent), Cell(f"{loss:.4g}", loss)]
            for curve in order for done, loss in curve.points]  # fmt: skip
    more = f" {len(order) - MOST_CURVES} more are in the table." if len(order) > MOST_CURVES else ""
    text = (
        "The running loss of the fine-tuning, and of the candidates' short trainings; each is shown over its own "
        f"length. With distillation, the loss holds the distance from the original's logits.{more}"
    )
    table = DataTable("losses", "Losses of the trainings", ["training", "done", "loss"], rows)
    return Figure("training", "Training", text, table, [plot])


def answers(result: Mapping[str, Any]) -> Figure:
    """Where the two networks answer differently."""
    found = result["answers"]
    total = found["samples"] or 1
    lines = (("both right", "both_right"), ("only the original right", "lost"),
             ("only the compressed network right", "gained"), ("both wrong", "both_wrong"))  # fmt: skip
    rows = [[Cell(name), Cell(human.exact(found[key]), found[key]), number(found[key] / total, human.percent)]
            for name, key in lines]  # fmt: skip
    text = (
        f"Answers of the original and of the compressed network on {found['samples']} samples of the {found['split']} "
        f"split. They differ on {found['changed']} ({human.percent(found['changed'] / total)})."
    )
    more = []
    if found["pairs"]:
        pairs = [
            [*(Cell(str(pair[key])) for key in ("label", "original", "final")), Cell(str(pair["count"]), pair["count"])]
            for pair in found["pairs"]
        ]
        more.append(
            DataTable("changed-answers", "The commonest changes", ["label", "original", "compressed", "samples"], pairs)
        )
    for key, name in (("original", "the original"), ("final", "the compressed network")):
        if found.get("confusion"):
            more.append(
                confusion(found["confusion"][key], key, f"Confusion of {name}: rows are labels, columns are answers")
            )
    table = DataTable("answers", "Agreement", ["outcome", "samples", "share"], rows)
    return Figure("answers", "Changed answers", text, table, open=True, more=more)


def confusion(counts: Sequence[Sequence[int]], name: str, caption: str) -> DataTable:
    """A confusion matrix; the errors are shaded by their number."""
    most = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)
    rows = [
        [Cell(str(i), i), *(Cell(str(n), n, "final" if i == j else f"c{shade(n, 0.5, max(1, most))}" if n else "zero")
                            for j, n in enumerate(row))]
        for i, row in enumerate(counts)
    ]  # fmt: skip
    return DataTable(f"confusion-{name}", caption, ["label", *map(str, range(len(counts)))], rows)
