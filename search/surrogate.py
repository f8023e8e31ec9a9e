"""A Gaussian process over policies: what a policy will score, and how sure that is.

With some dozen evaluations and some dozen sites, what can be learned is mostly one curve a site. So the kernel is a sum
of curves, each over the logarithm of one site's width, and a little of one over all of them together for what the
sites do to each other (Duvenaud, Nickisch & Rasmussen 2011, arXiv:1112.4394); the mean is linear in the allocator's
error. Rewards enter as normal scores of their ranks: only the order matters, and outliers are harmless. The amounts of
curves, interaction and noise are those of a small grid with the largest marginal likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]

_CURVES = (0.5, 2.0)
_TOGETHER = (0.1, 1.0)
_NOISE = (1e-3, 1e-1)
_LENGTH = 0.7  # of a curve, in the logarithm of the width


class Surrogate:
    """Fitted on ``features [n, S]`` (logarithms of shares), ``trends [n]`` and ``rewards [n]``, which may be -inf.

    ``doubt [n]`` multiplies the noise: above 1 for rewards that are estimates.
    """

    def __init__(self, features: Floats, trends: Floats, rewards: Sequence[float], doubt: Floats) -> None:
        self._features = features
        self._target = norm.ppf((rankdata(rewards) - 0.5) / len(rewards))
        self._scale = float(np.std(trends)) or 1.0
        self._basis = self._mean_basis(trends)
        curves, together = self._kernels(features)
        fits = [
            self._fit(a * curves + b * together, c * doubt, (a, b)) for a, b, c in product(_CURVES, _TOGETHER, _NOISE)
        ]
        _, self._amounts, self._factor, self._weights, self._coefficients = max(fits, key=lambda fit: fit[0])

    def predict(self, features: Floats, trends: Floats) -> tuple[Floats, Floats]:
        """Mean and deviation of the policies' scores, both ``[m]``."""
        curves, together = self._kernels(features)
        cross = self._amounts[0] * curves + self._amounts[1] * together
        mean = self._mean_basis(trends) @ self._coefficients + cross @ self._weights
        variance = sum(self._amounts) - (cross * cho_solve(self._factor, cross.T).T).sum(1)
        return mean, np.sqrt(np.maximum(variance, 1e-9))

    @property
    def best(self) -> float:
        """The best score so far."""
        return float(self._target.max())

    def _mean_basis(self, trends: Floats) -> Floats:
        return np.stack([np.ones(len(trends)), trends / self._scale], 1)

    def _kernels(self, features: Floats) -> tuple[Floats, Floats]:
        apart = (features[:, None] - self._features[None]) ** 2 / (2 * _LENGTH**2)
        return np.exp(-apart).mean(2), np.exp(-apart.mean(2) * 4)

    def _fit(
        self, kernel: Floats, noise: Floats, amounts: tuple[float, float]
    ) -> tuple[float, tuple[float, float], tuple[Floats, bool], Floats, Floats]:
        factor = cho_factor(kernel + np.diag(noise), lower=True)
        solved = cho_solve(factor, self._basis)
        coefficients = np.linalg.solve(self._basis.T @ solved + 0.1 * np.eye(2), solved.T @ self._target)
        rest = self._target - self._basis @ coefficients
        weights = cho_solve(factor, rest)
        likelihood = -0.5 * float(rest @ weights) - float(np.log(np.diag(factor[0])).sum())
        return likelihood, amounts, factor, weights, coefficients


def improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Expected improvement over ``best`` (Jones, Schonlau & Welch 1998)."""
    z = (mean - best) / deviation
    return np.asarray(deviation * (z * norm.cdf(z) + norm.pdf(z)))
