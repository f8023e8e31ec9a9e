"""A latency model learned from profiled networks.

Notation: S sites, N measured networks, A operators, K kinds of operators; ``w [B, S]`` the widths.

An operator of kind k with i inputs and o outputs takes ``table_k[i, o]`` milliseconds, and a network takes
``c0 + c1 · Σ table``. The tables are fitted to the times of operators by non-negative least squares. The features
follow from how the runtime works: it computes channels in blocks, so i and o are rounded up to the block; a width below
one block or between two blocks costs a change of layout. Residuals are added at widths with enough observations. The
size of the block is the one with the least error in cross-validation. ``c0`` and ``c1`` are fitted to the times of
whole networks.

Every prediction is positive, however far it is from the profiled networks: ``c0 ≥ 0``, ``c1`` is between 0.5 and 2, and
no table entry is below the time that starting its operator takes (`Tables.starting`).

The error is estimated by five-fold cross-validation: every network is predicted from the other folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from amc.latency.measurement import is_usual
from amc.latency.operators import Operator
from amc.latency.reference import UNDISTURBED

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCKS = (16, 8, 4, 1, 32)
FOLDS = 5
ENOUGH = 10
"""Number of undisturbed networks from which disturbed ones are ignored: on ResNet-20, ten undisturbed networks gave a
better model than a few hundred disturbed ones."""
TRUST = 2.0
"""Number of observations of a pair of widths at which their residual gets half of the full weight."""
START = 0.1
"""Starting an operator takes at least this share of its fastest measured call."""
NEGLIGIBLE = 1e-4
"""Starting an operator takes at least this share of the average time of an operator in the original."""
SLOPES = (0.5, 2.0)
"""Bounds of ``c1``. It is near 1, since the times of operators are scaled to add up to their network's."""


@dataclass(frozen=True)
class Sample:
    """A measured network."""

    widths: tuple[int, ...]
    ratio: float
    """Its time as a share of the original's."""
    undisturbed: float
    """Share of the rounds in which the machine was undisturbed."""
    original_ms: float
    """Milliseconds of the original, measured at the same time."""
    operators: tuple[float, ...]
    """Milliseconds of every operator."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions of held-out networks."""

    mean: float
    worst: float
    spearman: float
    count: int


def errors(predicted: ArrayLike, measured: ArrayLike) -> Errors:
    """Errors of predictions.

    >>> errors([1.1, 2.0], [1.0, 2.0]).worst
    0.10000000000000009
    """
    from scipy.stats import spearmanr  # takes a second to import

    p, m = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    off = np.abs(p / m - 1)
    rank = float(spearmanr(p, m)[0]) if len(p) > 2 and np.ptp(p) > 0 and np.ptp(m) > 0 else 1.0
    return Errors(float(off.mean()), float(off.max()), rank, len(p))


class Tables:
    """Sums of table entries: ``c0 + c1 · Σ_a table_a[i_a, o_a]`` for widths ``[B, S]``."""

    def __init__(self, found: Sequence[Operator], tables: Mapping[str, OperatorTable], c0: float, c1: float) -> None:
        self._slopes = np.stack([op.inputs[0] for op in found] + [op.outputs[0] for op in found], 1).astype(np.float64)
        self._constants = np.array([op.inputs[1] for op in found] + [op.outputs[1] for op in found], np.float64)
        # all tables are concatenated, so that a prediction is a few lookups
        starts = dict.fromkeys(tables, (0, 0, 0))
        steps, values, at = [], [], 0
        place = 0
        for kind, table in tables.items():
            rows, columns = table.places(0), table.places(1)
            starts[kind] = (place, place + len(rows), at)
            steps += [rows * len(table.outputs), columns]
            place += len(rows) + len(columns)
            values.append(table.ms.ravel())
            at += table.ms.size
        self._steps, self._values = np.concatenate(steps), np.concatenate(values)
        self._offsets = np.array([starts[op.kind][0] for op in found] + [starts[op.kind][1] for op in found])
        self._bases = np.array([starts[op.kind][2] for op in found])
        self._count, self._found, self._tables = len(found), found, tables
        self._branches = np.array([op.branch for op in found], np.int64)
        self._starts = np.array([tables[op.kind].start for op in found])
        self.c0, self.c1 = c0, c1

    def non_decreasing(self, settings: Sequence[Sequence[int]]) -> Tables:
        """A copy for these settings in which a wider setting never costs less, as `Space.allowed` requires.

        It is the mean of the largest non-decreasing table below this one and the smallest above it.
        """
        tables = {}
        for kind, table in self._tables.items():
            ends = [
                _reached(op, side, settings, (table.inputs, table.outputs)[side])
                for side in (0, 1)
                for op in self._found
                if op.kind == kind
            ]
            half = len(ends) // 2
            inputs, outputs = (np.unique(np.concatenate(part)) for part in (ends[:half], ends[half:]))
            ms = table.ms[np.ix_(np.searchsorted(table.inputs, inputs), np.searchsorted(table.outputs, outputs))]
            below = np.minimum.accumulate(np.minimum.accumulate(ms[::-1, ::-1], 0), 1)[::-1, ::-1]
            above = np.maximum.accumulate(np.maximum.accumulate(ms, 0), 1)
            tables[kind] = OperatorTable(inputs, outputs, (below + above) / 2, table.start)
        return Tables(self._found, tables, self.c0, self.c1)

    def operators(self, rows: ArrayLike) -> Floats:
        """Milliseconds ``[B, A]`` of every operator, before ``c0`` and ``c1`` are applied."""
        w = np.atleast_2d(np.asarray(rows, np.float64))
        lengths = (w @ self._slopes + self._constants).astype(np.int64)
        places = self._steps[lengths + self._offsets]
        found: Floats = self._values[places[:, : self._count] + places[:, self._count :] + self._bases]
        return found if w.all() else found * _present(self._branches, w)

    def starting(self, rows: ArrayLike) -> Floats:
        """Milliseconds ``[B]`` for starting the remaining operators: a lower bound on predictions."""
        w = np.atleast_2d(np.asarray(rows))
        found: Floats = self.c1 * (_present(self._branches, w) @ self._starts)
        return found

    def __call__(self, rows: ArrayLike) -> Floats:
        """Milliseconds ``[B]``."""
        found: Floats = self.c0 + self.c1 * self.operators(rows).sum(1)
        return found


@dataclass(frozen=True, eq=False)
class OperatorTable:
    """Milliseconds of an operator by its numbers of inputs and outputs, rounded up to the table's levels."""

    inputs: Ints
    outputs: Ints
    ms: Floats
    start: float
    """Milliseconds for starting the operator: the least entry."""

    def places(self, side: int) -> Ints:
        """For every length from 0 to the largest, the index of its level."""
        marks = (self.inputs, self.outputs)[side]
        found: Ints = np.searchsorted(marks, np.arange(marks[-1] + 1))
        return found


def _present(branches: Ints, w: NDArray[Any]) -> NDArray[np.bool_]:
    """Which operators ``[B, A]`` a network still has: those outside removed branches."""
    found: NDArray[np.bool_] = (branches < 0) | (w[:, branches] > 0)
    return found


def _reached(op: Operator, side: int, settings: Sequence[Sequence[int]], marks: Ints) -> Ints:
    """The lengths that one side of an operator can have with these settings."""
    slopes, constant = (op.inputs, op.outputs)[side]
    sites = np.flatnonzero(slopes)
    if len(sites) == 0:
        return np.array([constant])
    if len(sites) == 1:
        reached: Ints = np.array(settings[sites[0]]) * slopes[sites[0]] + constant
        return reached
    return marks


def levels(most: int) -> Ints:
    """Levels of a table: all up to 4, multiples of 4 up to 64, of 8 up to 256, of 16 above, and ``most``.

    >>> levels(18).tolist()
    [1, 2, 3, 4, 8, 12, 16, 18]
    """
    marks = {*range(1, 5), *range(4, 65, 4), *range(64, 257, 8), *range(256, most, 16)}
    return np.array(sorted({m for m in marks if m < most} | {most}))


def features(i: Ints, o: Ints, block: int) -> Floats:
    """Features ``[n, 12]`` that explain the time of an operator; see ONNX Runtime's NCHWc kernels."""
    narrow, small = i < block, o < block
    blocks_in = np.where(narrow, i / block, -(-i // block))
    blocks_out = -(-o // block)
    ragged, odd = o % block != 0, (i % 4 != 0)
    columns = [np.ones(len(i)), blocks_in, blocks_out, blocks_in * blocks_out, narrow, narrow * blocks_out, small,
               small * blocks_in, ragged, ragged * blocks_in, odd, odd * blocks_in * blocks_out]  # fmt: skip
    return np.stack(columns, 1).astype(np.float64)


def fit(
    found: Sequence[Operator], samples: Sequence[Sample], original_ms: float, block: int, full: Sequence[int]
) -> Tables:
    """Fit the tables to measured networks; ``full`` are the original's widths, the largest in the tables."""
    w = np.array([s.widths for s in samples])
    total = np.array([s.ratio for s in samples]) * original_ms
    own = np.array([s.operators for s in samples])
    own[own.sum(1) == 0] = 1.0  # the profiler named none: split the total evenly
    own *= (total / own.sum(1))[:, None]  # the profiler slows operators down: scale them to the network's time
    weight = np.array([0.2 + s.undisturbed for s in samples])
    present = _present(np.array([op.branch for op in found], np.int64), w)
    negligible = NEGLIGIBLE * original_ms / len(found)
    tables = {}
    for kind in sorted({op.kind for op in found}):
        members = [a for a, op in enumerate(found) if op.kind == kind]
        ends = [_ends(found[a], w) for a in members]
        there = present[:, members].T.ravel()
        i, o = (np.concatenate([end[side] for end in ends])[there] for side in (0, 1))
        ms, share = own[:, members].T.ravel()[there], np.tile(weight, len(members))[there]
        most = np.max([_ends(found[a], np.array([full])) for a in members], 0).ravel()
        tables[kind] = _table(i, o, ms, share, block, most, negligible)
    summed = Tables(found, tables, 0.0, 1.0)(w)
    c0, c1 = _line(summed, total, weight)
    return Tables(found, tables, c0, c1)


def _ends(op: Operator, w: Ints) -> tuple[Ints, Ints]:
    return w @ op.inputs[0] + op.inputs[1], w @ op.outputs[0] + op.outputs[1]


def _table(i: Ints, o: Ints, ms: Floats, weight: Floats, block: int, most: Ints, negligible: float) -> OperatorTable:
    """The table of one kind of operators up to the lengths ``most [2]``, from ``n`` calls of them."""
    if len(ms) == 0:  # the branches with these operators are removed in all measured networks
        i, o, ms, weight = most[:1], most[1:], np.array([negligible]), np.ones(1)
    basis = features(i, o, block)
    c = _non_negative(basis, ms, weight)
    left = defaultdict(list)
    for a, b, rest in zip(i.tolist(), o.tolist(), (ms - basis @ c).tolist(), strict=True):
        left[a, b].append(rest)
    inputs, outputs = levels(int(most[0])), levels(int(most[1]))
    a, b = (x.ravel() for x in np.meshgrid(inputs, outputs, indexing="ij"))
    values = (features(a, b, block) @ c).reshape(len(inputs), len(outputs))
    for (one, two), rests in left.items():
        x, y = np.searchsorted(inputs, one), np.searchsorted(outputs, two)
        values[x, y] += median(rests) * len(rests) / (len(rests) + TRUST)
    least = float(ms.min())
    start = max(negligible, min(least, max(START * least, float(c[0]))))
    return OperatorTable(inputs, outputs, np.maximum(values, start), start)


def _non_negative(basis: Floats, ms: Floats, weight: Floats) -> Floats:
    """Robust non-negative least squares: Huber weights for outliers, and a small ridge for a unique solution."""
    scale = np.maximum(basis.max(0), 1e-9)
    basis = basis / scale
    ridge = 1e-3 * np.sqrt(weight.sum()) * np.eye(basis.shape[1])
    share = np.sqrt(weight)
    for _ in range(4):
        q, r = np.linalg.qr(np.vstack([basis * share[:, None], ridge]))  # leaves a square problem
        c, _ = nnls(r, q[: len(ms)].T @ (ms * share))
        share = np.sqrt(weight * _huber(ms - basis @ c))
    found: Floats = c / scale
    return found


def _huber(rest: Floats) -> Floats:
    far = np.abs(rest) / (1.5 * 1.4826 * np.median(np.abs(rest)) + 1e-9)
    found: Floats = 1 / np.maximum(1, far)
    return found


def _line(x: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    """Fit ``y ≈ c0 + c1 · x`` to relative errors with Huber weights, ``c0 ≥ 0`` and ``c1`` within `SLOPES`."""
    basis = np.stack([np.ones(len(x)), x], 1) / y[:, None]
    share = np.sqrt(weight)
    c = np.array([0.0, 1.0])
    if np.ptp(x) >= 1e-3 * x.mean():
        for _ in range(8):
            c = np.linalg.lstsq(basis * share[:, None], share, rcond=None)[0]
            share = np.sqrt(weight * _huber(1 - basis @ c))
        if c[0] >= 0 and SLOPES[0] <= c[1] <= SLOPES[1]:
            return float(c[0]), float(c[1])
    return 0.0, float(np.clip(np.median(y / x), *SLOPES))


def undisturbed(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples measured on an undisturbed machine at its most frequent speed.

    A shared machine may be 50 % slower for hours, without fluctuation. Ratios to the original differ then.
    """
    good = [s for s in samples if s.undisturbed >= UNDISTURBED]
    if not good:
        return []
    took = np.array([s.original_ms for s in good])
    alike = is_usual(took, took[:, None])  # [state, network]
    return [s for s, one in zip(good, alike[alike.sum(1).argmax()], strict=True) if one]


def _to_learn_from(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The undisturbed samples if there are at least `ENOUGH`; else all."""
    good = undisturbed(samples)
    return good if len(good) >= ENOUGH else samples


def learn(found: Sequence[Operator], samples: Sequence[Sample], original_ms: float) -> tuple[Tables, int, Errors]:
    """The model with the best size of blocks, that size, and the model's errors in cross-validation."""
    full = np.max([s.widths for s in samples], 0).tolist()
    samples = _to_learn_from(samples)
    measured = np.array([s.ratio for s in samples]) * original_ms
    tried = {block: errors(_held_out(found, samples, original_ms, block, full), measured) for block in BLOCKS}
    block = min(tried, key=lambda b: tried[b].mean)
    return fit(found, samples, original_ms, block, full), block, tried[block]


def _held_out(
    found: Sequence[Operator], samples: Sequence[Sample], original_ms: float, block: int, full: Sequence[int]
) -> Floats:
    predicted = np.zeros(len(samples))
    fold = np.arange(len(samples)) % FOLDS
    for number in range(FOLDS):
        others = [s for s, f in zip(samples, fold, strict=True) if f != number]
        held = [s.widths for s, f in zip(samples, fold, strict=True) if f == number]
        if held:
            predicted[fold == number] = fit(found, others, original_ms, block, full)(held)
    return predicted
