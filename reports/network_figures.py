"""Figures about the network: its widths to scale, what each site would lose, and its layers before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from amc.reports import human
from amc.reports.plot import Box, Cell, ChartAxis, DataTable, Figure, Plot, number
from amc.reports.table import is_quantised

SHADES = 5


def network_figures(result: Mapping[str, Any]) -> Iterator[Figure]:
    """The figures for which there is data."""
    quantised = [site for site in result["sites"] if is_quantised(site)]
    if len(quantised) < len(result["sites"]):
        yield widths([site for site in result["sites"] if site not in quantised])
    if quantised:
        yield weight_bits(quantised)
    if result.get("sensitivity"):
        yield sensitivity(result)
    if result.get("layers"):
        yield layers(result)


def _numbered(name: str, count: int) -> ChartAxis:
    """A horizontal axis of numbered columns, with at most a dozen labels."""
    step = -(-count // 12)
    return ChartAxis(name, -0.5, count - 0.5, labels=tuple((float(i), str(i + 1)) for i in range(0, count, step)))


def bars(
    label: str, name: str, whole: Sequence[float], kept: Sequence[float | None], tips: Sequence[str], height: int = 220
) -> Plot:
    """Two bars around one axis per column: the original and what is kept; the shorter one is in front."""
    most, step = max([*whole, *(value or 0 for value in kept)], default=0) or 1, 100 / max(1, len(whole))
    boxes = []
    for i, (before, after, tip) in enumerate(zip(whole, kept, tips, strict=True)):
        pair = [(before, "whole"), (after or 0, "kept")]
        for value, kind in sorted(pair, key=lambda one: -one[0]):  # a layer may take more time than before
            if value:
                tall = 100 * value / most
                boxes.append(Box(round((i + 0.12) * step, 3), round(50 - tall / 2, 3), round(0.76 * step, 3),
                                 round(tall, 3), kind))  # fmt: skip
        boxes.append(Box(round(i * step, 3), 0, round(step, 3), 100, "hit", tip))
    legend = [("box", "whole", "original"), ("box", "kept", "kept")]
    return Plot(
        label, _numbered(name, len(whole)), ChartAxis("", 0, 1, labels=()), boxes=boxes, legend=legend, height=height
    )


def weight_bits(sites: Sequence[Mapping[str, Any]]) -> Figure:
    """The bits of the weights of every layer."""
    names = [str(site["name"]).partition(":")[2] for site in sites]
    numbered = list(enumerate(zip(names, sites, strict=True), 1))
    tips = [f"{i}. {name}: {human.exact(s['width'])} bits" for i, (name, s) in numbered]
    plot = bars(f"Bits of the weights of each of {len(sites)} layers, before and after", "layer, from input to output",
                [s["of"] for s in sites], [s["width"] for s in sites], tips)  # fmt: skip
    rows = [[Cell(str(i), i), Cell(name), number(s["width"], human.exact)] for i, (name, s) in numbered]
    text = (
        "The layers from input to output. The height is the number of bits of a weight; the filled part is what is "
        "left. Every output channel has one scale in float32 besides."
    )
    table = DataTable("bits", "Bits of the weights of each layer", ["number", "layer", "bits"], rows)
    return Figure("bits", "Bits of weights", text, table, [plot])


def widths(sites: Sequence[Mapping[str, Any]]) -> Figure:
    """The network from input to output: the width of every site to scale, before and after."""
    tips = [
        f"{i}. {s['name']}: {human.exact(s['width'])} of {human.exact(s['of'])} "
        f"({human.short_percent(human.quotient(s['width'], s['of']))})"
        for i, s in enumerate(sites, start=1)
    ]
    plot = bars(f"Width of each of {len(sites)} sites, before and after", "site, from input to output",
                [s["of"] for s in sites], [s["width"] for s in sites], tips)  # fmt: skip
    rows = [
        [Cell(str(i), i), Cell(s["name"]), number(s["width"], human.exact), number(s["of"], human.exact),
         number(human.quotient(s["width"], s["of"]), human.short_percent)]
        for i, s in enumerate(sites, start=1)
    ]  # fmt: skip
    text = (
        "The network from input to output. Each bar is a site: channels of one or several layers that can only be "
        "removed together. The height is the number of channels, to scale; the filled part is kept."
    )
    table = DataTable("widths", "Channels kept at each site", ["number", "site", "kept", "of", "share"], rows)
    return Figure("widths", "Channels kept", text, table, [plot])


def sensitivity(result: Mapping[str, Any]) -> Figure:
    """The estimated error of every site at every setting, with the chosen one marked."""
    sites, known = result["sites"], result["sensitivity"]
    chosen = {site["name"]: site["width"] for site in sites}
    errors = [error for site in known for error in site["errors"] if error > 0]
    low, high = (min(errors), max(errors)) if errors else (1.0, 1.0)
    boxes, marks, rows = list[Box](), list[Box](), []
    step = 100 / len(known)
    for column, site in enumerate(known):
        whole = site["sizes"][-1] or 1
        edges = _edges([size / whole for size in site["sizes"]])
        for size, error, bottom, top in zip(site["sizes"], site["errors"], edges, edges[1:], strict=False):
            mine = chosen.get(site["site"]) == size
            tip = f"{site['site']}, {human.exact(size)} of {human.exact(whole)}: error {error:.3g}"
            tip += ", chosen" if mine else ""
            place = (round(column * step, 3), round(100 - 100 * top, 3), round(step, 3), round(100 * (top - bottom), 3))
            boxes.append(Box(*place, f"q{shade(error, low, high)}", tip))
            if mine:
                marks.append(Box(*place, "chosen"))
            rows.append([Cell(str(column + 1), column + 1), Cell(site["site"]), Cell(human.exact(size), size),
                         Cell(human.exact(whole), whole), Cell(f"{error:.4g}", error),
                         Cell("chosen" if mine else "", kind="met")])  # fmt: skip
    y = ChartAxis(
        "kept, % of the original", 0, 1, labels=tuple((v, f"{100 * v:.0f}") for v in (0.0, 0.25, 0.5, 0.75, 1.0))
    )
    legend = [("box", f"q{q}", f"up to {bound:.2g}") for q, bound in enumerate(bounds(low, high))]
    plot = Plot("Estimated error of every site at every width", _numbered("site", len(known)), y,
                boxes=[*boxes, *marks],
                legend=[*legend, ("box", "chosen", "chosen")])  # fmt: skip
    text = (
        "What every site would lose at every width, estimated before any policy was evaluated: how much the search "
        "objective rises if only this site is narrowed. Strong colours are expensive; the chosen widths are outlined. "
        "Errors are relative to each other."
    )
    head = ["number", "site", "kept", "of", "estimated error", "policy"]
    return Figure("sensitivity", "Sensitivity", text, DataTable("sensitivity", "Estimated errors", head, rows), [plot])


def _edges(shares: Sequence[float]) -> list[float]:
    """The borders between the fields of rising shares: half-way between neighbours, from 0 to 1.

    >>> _edges([0.5, 1.0])
    [0.0, 0.75, 1.0]
    """
    return [0.0, *((a + b) / 2 for a, b in pairwise(shares)), 1.0]


def shade(error: float, low: float, high: float) -> int:
    """The shade of an error on a logarithmic scale, from 0 for none to `SHADES` - 1.

    >>> shade(0, 0.01, 1), shade(0.01, 0.01, 1), shade(1, 0.01, 1)
    (0, 0, 4)
    """
    if error <= 0 or high <= low:
        return 0
    return min(SHADES - 1, max(0, int(SHADES * math.log(error / low) / math.log(high / low))))


def bounds(low: float, high: float) -> list[float]:
    """The largest error of each shade."""
    return [low * (high / low) ** ((i + 1) / SHADES) for i in range(SHADES)]


_LAYER = (("inputs", "inputs", human.exact), ("outputs", "outputs", human.exact), ("macs", "MACs", human.count),
          ("params", "parameters", human.count), ("ms", "time", human.milliseconds))  # fmt: skip


def layers(result: Mapping[str, Any]) -> Figure:
    """Every layer before and after."""
    known = result["layers"]
    timed = any(_of(layer, network, "ms") is not None for layer in known for network in ("original", "final"))
    shown = [line for line in _LAYER if line[0] != "ms" or timed]
    rows = [
        [Cell(str(i), i), Cell(layer["name"]), Cell(layer["operator"]),
         *(cell for key, _, write in shown for cell in (number(_of(layer, "original", key), write),
                                                        number(_of(layer, "final", key), write)))]
        for i, layer in enumerate(known, start=1)
    ]  # fmt: skip
    head = ["number", "layer", "operator", *(f"{name}, {when}" for _, name, _ in shown for when in ("before", "after"))]
    plots = []
    for key, name, write in (line for line in shown if line[0] in ("macs", "ms")):
        before, after = ([_of(layer, network, key) for layer in known] for network in ("original", "final"))
        tips = [f"{i}. {layer['name']}: {write(b)} → {write(a)} {name}" for i, (layer, b, a)
                in enumerate(zip(known, before, after, strict=True), start=1)]  # fmt: skip
        plots.append(bars(f"{name} of each of {len(known)} layers, before and after", f"layer ({name})",
                          [v or 0.0 for v in before], after, tips, height=150))  # fmt: skip
    text = "Convolutions and matrix products in the ONNX files, before and after."
    if timed:
        text += " Times are those of ONNX Runtime's profiler, which slows operators a little; operators may be fused."
    table = DataTable("layers", "Layers before and after", head, rows)
    return Figure("layers", "Layers", text, table, plots)


def _of(layer: Mapping[str, Any], network: str, key: str) -> float | None:
    part = layer.get(network)
    return None if part is None else part.get(key)
