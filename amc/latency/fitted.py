"""Predict latency from a few measurements of whole networks, for devices on which one measurement takes seconds.

Notation: N networks measured, L layers, ``m_l`` a layer's MACs as a share of the original's, ``d`` the data that all
layers write, ``y [N]`` milliseconds::

    y ≈ c + r · Σ_l m_l + s · d + Σ_l e_l · m_l,    c, r, s, e_l ≥ 0

The coefficients come from non-negative least squares on relative errors, with a ridge penalty on the layers' own
``e_l``: with few networks, all layers cost the same per MAC; with more, they differ. The ridge is chosen by
cross-validation. Because no coefficient is negative, a wider layer never costs less, as the action bounds of
`amc.space.budget.Space.allowed` require. Predictions are then scaled linearly, so that those of the original and of the
smallest network equal their measurements: a relative limit is a share of the one, and the other decides what can be
reached. No prediction is below the least measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from amc.latency.model import LatencyProblem, LayerShape, Predictor, length_matrix

Floats = NDArray[np.float64]

LEAST, MOST = 16, 32
"""Bounds on the number of measured networks, which is one per site between them."""
RIDGES = (0.01, 0.1, 1.0, 10.0)


class FittedModel:
    """Predicts the milliseconds of any policy from ``measure(widths)`` of a few."""

    unit = "ms"

    def __init__(self, name: str, measure: Callable[[Sequence[int]], float]) -> None:
        self.name, self._measure = name, measure
        self._weights = np.zeros(0)
        self._anchors = ((0.0, 0.0), (1.0, 1.0))
        """Fitted and measured milliseconds of the smallest network and of the original."""
        self.least = 0.0
        """Milliseconds of the fastest measured network: a lower bound on all predictions."""
        self.error = 0.0
        """Mean relative error in cross-validation."""
        self.networks = 0

    def prepare(self, problem: LatencyProblem) -> None:
        """Measure the original, the smallest network and random ones between, and fit."""
        settings = list(problem.settings.values())
        self._layers = _Features(problem.layers, tuple(problem.full), [s[-1] for s in settings])
        rows = sample_policies(settings, min(MOST, max(LEAST, len(settings))))
        times = np.array([self._measure(row) for row in rows])
        self.networks, self.least = len(rows), float(times.min())
        features = self._layers(rows)
        losses = {ridge: _left_out(features, times, ridge) for ridge in RIDGES}
        best = min(losses, key=lambda ridge: losses[ridge])
        self.error, self._weights = losses[best], _fit(features, times, best)
        self._anchors = _anchors(features[:2] @ self._weights, times[:2])

    def predict(self, widths: dict[str, int]) -> float:
        """Milliseconds of one policy."""
        return float(self.predict_all([list(widths.values())])[0])

    def predict_all(self, rows: ArrayLike) -> Floats:
        """Milliseconds ``[B]`` of the widths ``[B, S]``."""
        (fitted_least, least), (fitted_whole, whole) = self._anchors
        share = (self._layers(rows) @ self._weights - fitted_least) / (fitted_whole - fitted_least)
        found: Floats = np.maximum(least + (whole - least) * share, self.least)
        return found


def _anchors(fitted: Floats, measured: Floats) -> tuple[tuple[float, float], tuple[float, float]]:
    """Fitted and measured times of the smallest network and of the original; both are given with the original first.

    Where the smallest is not faster than the original, neither as fitted nor as measured, only the original counts.
    """
    whole, least = (float(fitted[0]), float(measured[0])), (float(fitted[1]), float(measured[1]))
    return (least if least[0] < whole[0] and least[1] < whole[1] else (0.0, 0.0)), whole


def sample_policies(settings: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The original, the smallest network, and random ones of all sizes between; always the same."""
    rng = np.random.default_rng(0)
    rows = [[s[-1] for s in settings], [s[0] for s in settings]]
    for middle in rng.permutation(np.linspace(0, 1, count - 2)):
        spots = np.clip(middle + rng.uniform(-0.5, 0.5, len(settings)), 0, 1)
        rows.append([s[round(spot * (len(s) - 1))] for s, spot in zip(settings, spots, strict=True)])
    return rows


class _Features:
    """``[1, Σ m, d, m_1 … m_L]`` of widths ``[B, S]``."""

    def __init__(self, layers: Sequence[LayerShape], sites: Sequence[str], full: Sequence[int]) -> None:
        self._a, self._a0 = length_matrix([layer.inputs for layer in layers], sites)
        self._b, self._b0 = length_matrix([layer.outputs for layer in layers], sites)
        dense = np.array([not layer.depthwise for layer in layers])
        self._a, self._a0 = self._a * dense, np.where(dense, self._a0, 1)
        taps = np.array([layer.taps for layer in layers])
        self._positions = np.array([layer.positions for layer in layers])
        self._macs = taps * self._positions
        whole = np.asarray([full])
        outputs = whole @ self._b + self._b0
        self._all_macs = float(((whole @ self._a + self._a0) * outputs * self._macs).sum())
        self._all_data = float((outputs * self._positions).sum())

    def __call__(self, rows: ArrayLike) -> Floats:
        w = np.atleast_2d(np.asarray(rows, np.float64))
        outputs = w @ self._b + self._b0
        macs = (w @ self._a + self._a0) * outputs * self._macs / self._all_macs
        data = outputs @ self._positions / self._all_data
        return np.column_stack([np.ones(len(w)), macs.sum(1), data, macs])


def _fit(features: Floats, times: Floats, ridge: float) -> Floats:
    own = features.shape[1] - 3
    penalty = np.hstack([np.zeros((own, 3)), np.sqrt(ridge) * np.eye(own) / own])
    rows = np.vstack([features / times[:, None], penalty])
    weights: Floats = nnls(rows, np.concatenate([np.ones(len(times)), np.zeros(own)]))[0]
    return weights


def _left_out(features: Floats, times: Floats, ridge: float) -> float:
    """Mean relative error in four-fold cross-validation."""
    found = np.empty(len(times))
    for fold in range(4):
        out = np.arange(len(times)) % 4 == fold
        found[out] = features[out] @ _fit(features[~out], times[~out], ridge)
    return float(np.abs(found / times - 1).mean())


def fitted(predictor: Predictor, problem: LatencyProblem) -> FittedModel:
    """A model fitted to measurements by ``predictor``, which takes seconds for each."""
    sites = tuple(problem.full)
    model = FittedModel(predictor.name, lambda row: predictor.predict(dict(zip(sites, row, strict=True))))
    model.prepare(problem)
    return model
