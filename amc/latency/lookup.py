"""A latency model from a table file that was measured on any device.

A row has a layer, its widths and milliseconds. The file is CSV with the header ``layer,widths,ms``, or JSON: a list of
objects with these keys, or an object with that list as ``rows`` and optionally ``any_speed`` (see `amc.latency.model`).
There are two kinds of tables:

* by site, with one width per row: the time of everything that depends on the site, at this number of kept channels;
* by layer, with two widths per row (``16x32``): the time of a convolution or linear layer with these numbers of inputs
  and outputs. The widths of a layer must form a grid; a depthwise layer has its width twice.

The layer ``*``, without widths, is a constant. The prediction is the sum over all layers. Between the widths of a table
it is interpolated, linearly or bilinearly; there is no extrapolation. If the device has steps in its latency, give both
ends of each step.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.errors import ConfigError, LatencyError, did_you_mean
from amc.latency.model import LatencyProblem, LayerShape, Length, Widths, length_matrix
from amc.runtime.files import read_bytes

COLUMNS = ("layer", "widths", "ms")
ALWAYS = "*"

Point = tuple[int, ...]
Table = dict[str, dict[Point, float]]


class TableModel:
    """The sum over a table's sites or layers."""

    unit = "ms"

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._table, self.any_speed = read_table(path)
        self._always = sum(self._table.pop(ALWAYS, {}).values())
        self._entries: list[_Entry] = []
        self._slopes = self._constants = np.zeros(0)

    def prepare(self, problem: LatencyProblem) -> None:
        """Match the table with the network. Raises LatencyError for what is missing or unknown."""
        axes = _axes(self._table, problem, self.name)
        unknown = sorted(set(self._table) - set(axes))
        if unknown:
            raise LatencyError(f"{self.name}: '{unknown[0]}' is not in the network.{did_you_mean(unknown[0], axes)}")
        missing = [name for name in axes if name not in self._table]
        if missing:
            raise LatencyError(f"{self.name} has no rows for {missing[0]} ({len(missing)} of {len(axes)} are missing).")
        self._entries = [_Entry(f"{self.name}: {name}", self._table[name], axes[name], problem) for name in axes]
        lengths = [length for entry in self._entries for length in entry.axes]
        self._slopes, self._constants = length_matrix(lengths, tuple(problem.full))

    def predict(self, widths: Widths) -> float:
        """Milliseconds of one policy."""
        return float(self.predict_all([list(widths.values())])[0])

    def predict_all(self, rows: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds ``[B]`` of the widths ``[B, S]``."""
        lengths: list[list[int]] = (np.asarray(rows) @ self._slopes + self._constants).astype(np.int64).tolist()
        return np.array([self._sum(row) for row in lengths])

    def _sum(self, lengths: Sequence[int]) -> float:
        total, at = self._always, 0
        for entry in self._entries:
            total += entry(tuple(lengths[at : at + len(entry.axes)]))
            at += len(entry.axes)
        return total


class _Entry:
    """One site or layer: milliseconds by one or two lengths, with a cache of interpolated values."""

    def __init__(
        self, name: str, points: Mapping[Point, float], axes: Sequence[Length], problem: LatencyProblem
    ) -> None:
        self.axes = tuple(axes)
        if len(axes) == 1 and all(len(point) == 2 for point in points):  # depthwise
            if any(first != second for first, second in points):
                raise LatencyError(f"{name} is depthwise, so its two widths must be equal, such as 32x32.")
            points = {(first,): ms for (first, _), ms in points.items()}
        self._known = dict(points)
        self._marks = [sorted({point[i] for point in points}) for i in range(len(axes))]
        absent = next((p for p in itertools.product(*self._marks) if p not in points), None)
        if absent is not None:
            raise LatencyError(f"{name}: its widths must form a grid, but {'x'.join(map(str, absent))} is missing.")
        for word, marks, length in zip(("inputs", "outputs")[-len(axes) :], self._marks, axes, strict=True):
            for wanted in (length(problem.smallest), length(problem.full)):
                if not marks[0] <= wanted <= marks[-1]:
                    raise LatencyError(
                        f"{name}: the table goes from {marks[0]} to {marks[-1]} {word}, but the search may ask for "
                        f"{wanted}: add rows" + (", or raise --min-keep." if wanted < marks[0] else ".")
                    )
        self._grid = np.array([points[p] for p in itertools.product(*self._marks)]).reshape(*map(len, self._marks))

    def __call__(self, lengths: Point) -> float:
        found = self._known.get(lengths)
        if found is None:
            values = self._grid
            for length, marks in zip(lengths, self._marks, strict=True):
                values = _between(values, marks, length)
            found = self._known[lengths] = float(values)
        return found


def _between(values: NDArray[np.float64], marks: Sequence[int], length: int) -> NDArray[np.float64]:
    """Interpolate ``values`` along the first axis at ``length``; that axis is dropped."""
    right = min(max(int(np.searchsorted(marks, length)), 1), len(marks) - 1)
    if len(marks) == 1:
        first: NDArray[np.float64] = values[0]
        return first
    share = (length - marks[right - 1]) / (marks[right] - marks[right - 1])
    mixed: NDArray[np.float64] = (1 - share) * values[right - 1] + share * values[right]
    return mixed


def _axes(table: Table, problem: LatencyProblem, name: str) -> dict[str, tuple[Length, ...]]:
    """The entries that the table must have, with the lengths that they are looked up by."""
    kinds = {len(point) for points in table.values() for point in points}
    if len(kinds) > 1:
        raise LatencyError(f"{name} mixes rows by site (one width) with rows by layer (two widths).")
    if kinds == {2}:
        return {shape.name: _of_layer(shape) for shape in problem.layers if shape.inputs.per_channel or
                shape.outputs.per_channel or shape.name in table}  # fmt: skip
    return {site: (Length(0, {site: 1}),) for site in problem.full}


def _of_layer(shape: LayerShape) -> tuple[Length, ...]:
    return (shape.outputs,) if shape.depthwise else (shape.inputs, shape.outputs)


def read_table(path: Path) -> tuple[Table, bool]:
    """Read a table: layer → widths → milliseconds, and its ``any_speed``. Raises ConfigError with the row's number."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows, any_speed = _json(text) if path.suffix.lower() == ".json" else (_csv(text), False)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from None
    table: Table = {}
    for number, row in rows:
        try:
            layer, point, ms = _row(row)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, row {number}: {str(error)[:200]}") from None
        if point in table.setdefault(layer, {}):
            raise ConfigError(f"{path}, row {number}: {layer} already has a row with these widths.")
        table[layer][point] = ms
    if not set(table) - {ALWAYS}:
        raise ConfigError(f"{path} has no rows.")
    return table, any_speed


def _csv(text: str) -> list[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    header = tuple(reader.fieldnames or ())
    if set(header) != set(COLUMNS):
        raise ValueError(f"its header is {','.join(header)[:80]!r}, but must be {','.join(COLUMNS)}.")
    return [(reader.line_num, row) for row in reader]


def _json(text: str) -> tuple[list[tuple[int, Any]], bool]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    any_speed = isinstance(content, dict) and content.get("any_speed") is True
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError("it must hold a list of rows, with layer, widths and ms each.")
    return list(enumerate(rows, start=1)), any_speed


def _row(row: Any) -> tuple[str, Point, float]:
    if not isinstance(row, dict) or set(row) != set(COLUMNS):
        raise ValueError(f"it must have {', '.join(COLUMNS)}.")
    layer, widths = row["layer"], row["widths"]
    if not isinstance(layer, str) or not layer:
        raise ValueError("it has no layer.")
    parts = widths if isinstance(widths, list) else str(widths if widths is not None else "").strip().lower().split("x")
    point = tuple(int(part) for part in parts if part != "")
    if len(point) not in ((0,) if layer == ALWAYS else (1, 2)) or any(n < 1 for n in point):
        raise ValueError(f"{layer} has the widths {widths!r}, but must have " +
                         ("none." if layer == ALWAYS else "one, such as 16, or two, such as 16x32."))  # fmt: skip
    ms = float(row["ms"])
    if not (math.isfinite(ms) and ms >= 0):
        raise ValueError(f"{layer} takes {ms} ms, but must be 0 or more.")
    return layer, point, ms
