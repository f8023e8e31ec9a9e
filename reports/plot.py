"""The data of charts: marks at positions in per cent of the plot, so that a chart fits any width without a script.

`figure.html.jinja` draws them. Nothing in this module is HTML; the template escapes all texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

LINE_SCALE = 1000
"""Lines are drawn in a square of this size, which is stretched over the plot."""


@dataclass(frozen=True)
class Tick:
    """A label at a position on an axis, in per cent from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class ChartAxis:
    """Maps values to positions, in per cent from ``low`` to ``high``; ``log`` axes need values above 0.

    >>> ChartAxis("MACs", 0, 50).place(20)
    40.0
    >>> ChartAxis("loss", 0.01, 1, log=True).place(0.1)
    50.0
    """

    name: str
    low: float
    high: float
    log: bool = False
    labels: tuple[tuple[float, str], ...] | None = None
    """Values and their texts where ticks are wanted; None: round numbers."""

    def place(self, value: float) -> float:
        """The position of a value; values outside the axis are placed at its end."""
        if self.high <= self.low:
            return 50.0
        scaled = [math.log10(v) if self.log else v for v in (self.low, value, self.high)]
        return round(min(100.0, max(0.0, 100 * (scaled[1] - scaled[0]) / (scaled[2] - scaled[0]))), 2)

    @property
    def ticks(self) -> list[Tick]:
        """Labels from left to right."""
        if self.labels is not None:
            return [Tick(self.place(value), text) for value, text in self.labels]
        values = log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)
        return [Tick(self.place(value), f"{value:.6g}") for value in values]


def axis(name: str, values: Iterable[float], log: bool = False) -> ChartAxis:
    """An axis that holds all values, with a margin; logarithmic only if all of them are above 0."""
    found = list(values)
    low, high = min(found, default=0.0), max(found, default=1.0)
    if log and low > 0:
        margin = max((high / low) ** 0.06, 1.02)
        return ChartAxis(name, low / margin, high * margin, log=True)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return ChartAxis(name, low - margin, high + margin)


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most ``most`` + 1 round numbers from ``low`` to ``high``.

    >>> linear_ticks(0, 52)
    [0.0, 20.0, 40.0]
    """
    if not low < high:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Numbers 1, 2 and 5 times powers of ten; only powers of ten on long axes; linear ones on short axes.

    >>> log_ticks(0.08, 3)
    [0.1, 0.2, 0.5, 1.0, 2.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{f}e{power}") for power in powers for f in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found if len(found) > 1 else linear_ticks(low, high)
    return found[:: math.ceil(len(found) / most)]


@dataclass(frozen=True)
class Point:
    """A mark with a text that is shown when it is pointed at. ``tags`` are words by which a page filters points."""

    x: float
    y: float
    tip: str
    kind: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line through points in `LINE_SCALE`; without ``tip`` nothing is shown for it."""

    path: str
    kind: str
    tip: str = ""


@dataclass(frozen=True)
class Box:
    """A rectangle in per cent of the plot, from its left upper corner."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    tip: str = ""


@dataclass(frozen=True)
class Guide:
    """A dashed line across the plot with a label; ``upright`` at a value of the horizontal axis."""

    at: float
    text: str
    upright: bool = True


@dataclass(frozen=True)
class Plot:
    """A chart: ``y`` rises from bottom to top, and all marks are already placed (from the top)."""

    label: str
    """What it shows, for people who do not see it."""
    x: ChartAxis
    y: ChartAxis
    points: Sequence[Point] = ()
    lines: Sequence[Line] = ()
    boxes: Sequence[Box] = ()
    guides: Sequence[Guide] = ()
    legend: Sequence[tuple[str, str, str]] = ()
    """Shape (``point``, ``line`` or ``box``), kind and text."""
    height: int = 260
    """In pixels."""

    @property
    def y_ticks(self) -> list[Tick]:
        """Labels of the vertical axis, placed from the top."""
        return [Tick(round(100 - tick.at, 2), tick.text) for tick in self.y.ticks]


@dataclass(frozen=True)
class Scale:
    """Places marks on two axes."""

    x: ChartAxis
    y: ChartAxis

    def point(self, x: float, y: float, tip: str, kind: str, tags: tuple[str, ...] = ()) -> Point:
        return Point(self.x.place(x), round(100 - self.y.place(y), 2), tip, kind, tags)

    def line(self, values: Iterable[tuple[float, float]], kind: str, tip: str = "", steps: bool = False) -> Line:
        """A line through (x, y); with ``steps`` it is level up to the next value."""
        ratio = LINE_SCALE / 100
        placed = [(round(ratio * self.x.place(x)), round(LINE_SCALE - ratio * self.y.place(y))) for x, y in values]
        if steps:
            placed = [corner for i, (x, y) in enumerate(placed) for corner in ([(x, placed[i - 1][1])] if i else [])
                      + [(x, y)]]  # fmt: skip
        return Line(" ".join(f"{x},{y}" for x, y in placed), kind, tip)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it is sorted by and exported with, if it is one."""

    text: str
    value: float | None = None
    kind: str = ""
    link: str = ""


def number(value: float | None, write: Callable[[float | None], str]) -> Cell:
    """A cell with a number as ``write`` formats it."""
    return Cell(write(value).replace("-", "−"), value)


@dataclass(frozen=True)
class DataTable:
    """A table that can be sorted and exported. ``name`` is that of the file."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column has numbers."""
        return [any(row[i].value is not None for row in self.rows if len(row) > i) for i in range(len(self.columns))]


@dataclass(frozen=True)
class Figure:
    """A section of the report: plots, and their table, which is folded up unless it is ``open``."""

    id: str
    title: str
    text: str
    table: DataTable
    plots: Sequence[Plot] = ()
    open: bool = False
    more: Sequence[DataTable] = field(default=())
    """Further tables, which are shown below."""
