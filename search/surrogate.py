"""A Gaussian process over policies: predicts the score of a policy and its uncertainty.

A few dozen evaluations of a few dozen sites determine little more than one curve per site. So the kernel is additive
(Duvenaud, Nickisch & Rasmussen 2011, arXiv:1112.4394): a sum of kernels over the logarithm of one site's width each,
and a smaller kernel over all sites for their interaction. The mean is linear in the logarithm of the allocator's error.
Rewards are replaced by normal scores of their ranks, so only their order matters and outliers are harmless. The
variances of curves, interaction and noise are chosen from a small grid by the marginal likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri  # scipy.stats takes a second to import
from torch import Tensor

Floats = NDArray[np.float64]

_CURVES = (0.5, 2.0)
_TOGETHER = (0.1, 1.0)
_NOISE = (1e-3, 1e-1)
_LENGTH = 0.7  # of a curve, in the logarithm of the width


class Surrogate:
    """A model fitted to ``features [n, S]`` (logarithms of shares), ``trends [n]`` and ``rewards [n]`` (maybe -inf).

    ``doubt [n]`` multiplies the noise; it is above 1 for rewards that are rough estimates.
    """

    def __init__(self, features: Floats, trends: Floats, rewards: Sequence[float], doubt: Floats) -> None:
        self._features = torch.from_numpy(features)
        self._target = torch.from_numpy(ndtri((average_ranks(rewards) - 0.5) / len(rewards)))
        self._scale = float(np.std(trends)) or 1.0
        curves, together = self._kernels(self._features)
        grid = list(product(_CURVES, _TOGETHER, _NOISE))
        kernels = torch.stack([a * curves + b * together + torch.diag(c * torch.from_numpy(doubt)) for a, b, c in grid])
        best, self._factor, self._weights, self._coefficients = self._fit(kernels, self._mean_basis(trends))
        self._amounts = grid[best][:2]

    def predict(self, features: Floats, trends: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the policies' scores, both ``[m]``."""
        curves, together = self._kernels(torch.from_numpy(features))
        cross = self._amounts[0] * curves + self._amounts[1] * together
        mean = self._mean_basis(trends) @ self._coefficients + cross @ self._weights
        variance = sum(self._amounts) - (cross * torch.cholesky_solve(cross.T, self._factor).T).sum(1)
        return mean[:, 0].numpy(), variance.clamp(min=1e-9).sqrt().numpy()

    @property
    def best(self) -> float:
        """The best normal score in the data."""
        return float(self._target.max())

    def _mean_basis(self, trends: Floats) -> Tensor:
        return torch.from_numpy(np.stack([np.ones(len(trends)), trends / self._scale], 1))

    def _kernels(self, features: Tensor) -> tuple[Tensor, Tensor]:
        apart = (features[:, None] - self._features[None]) ** 2 / (2 * _LENGTH**2)
        return (-apart).exp().mean(2), (-4 * apart.mean(2)).exp()

    def _fit(self, kernels: Tensor, basis: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        """Index of the most likely kernel of ``[G, n, n]``, its Cholesky factor, and the weights of data and mean."""
        target = self._target[:, None].expand(len(kernels), -1, 1)
        factors = torch.linalg.cholesky(kernels)
        solved = torch.cholesky_solve(basis.expand(len(kernels), -1, -1), factors)
        normal = basis.T @ solved + 0.1 * torch.eye(2, dtype=basis.dtype)
        coefficients = torch.linalg.solve(normal, solved.mT @ target)
        rest = target - basis @ coefficients
        weights = torch.cholesky_solve(rest, factors)
        likelihood = -0.5 * (rest * weights).sum((1, 2)) - factors.diagonal(dim1=1, dim2=2).log().sum(1)
        best = int(likelihood.argmax())
        return best, factors[best], weights[best], coefficients[best]


def improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Expected improvement over ``best`` (Jones, Schonlau & Welch 1998).

    >>> improvement(np.array([0.0]), np.array([1.0]), best=0.0).round(3).tolist()
    [0.399]
    """
    z = (mean - best) / deviation
    return np.asarray(deviation * (z * ndtr(z) + np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)))


def average_ranks(values: ArrayLike) -> Floats:
    """Ranks from 1; equal values get the mean of their ranks.

    >>> average_ranks([0.5, 2.0, 0.5]).tolist()
    [1.5, 3.0, 1.5]
    """
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places], np.float64)
