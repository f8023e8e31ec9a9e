"""The order in which races read samples, and the estimate of the mean over all from those that were read.

On most samples the losses of two policies hardly differ: both get them right. So samples on which the original has a
large loss are read first, and each is weighted by the inverse of its probability to be read: sequential Poisson
sampling (Ohlsson 1998, Journal of Official Statistics 14) with Hájek's estimator of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FLOOR = 0.2
"""Least size of a sample, where one of mean loss has 1: what is easy for one policy may be hard for another."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """An order of samples ``[N]``, drawn without replacement with probabilities in proportion to their sizes.

    >>> sampling = Sampling(torch.ones(4, dtype=torch.float64))
    >>> mean, error = sampling.mean(torch.ones(1, 2))
    >>> float(mean), float(error)
    (1.0, 0.0)
    """

    sizes: Tensor
    """The expected difference that every sample makes ``[N]``, in any unit, above 0."""
    seed: int = 0

    @classmethod
    def by_losses(cls, losses: Tensor) -> Sampling:
        """Sizes that grow with the square root of a known policy's losses ``[N]``."""
        above = losses - losses.min()
        return cls((above / above.mean().clamp_min(torch.finfo(above.dtype).tiny)).sqrt() + _FLOOR)

    @cached_property
    def order(self) -> Tensor:
        """The indices of the samples ``[N]``, those to read first at the front."""
        draws = torch.rand(len(self.sizes), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return (draws / self.sizes).argsort()

    @cached_property
    def _ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sizes, the largest first; their indices; and the sum of all sizes from each one on."""
        largest, where = self.sizes.sort(descending=True)
        return largest, where, largest.flip(0).cumsum(0).flip(0)

    def inclusion(self, count: int) -> Tensor:
        """How likely every sample ``[N]`` is among the first ``count``: in proportion to its size, at most 1."""
        largest, where, rest = self._ranked
        certain = torch.arange(len(largest))
        share = (count - certain) * largest / rest  # of this one, when those before it are certain
        first = int((share < 1).double().argmax()) if bool((share < 1).any()) else len(largest)
        found = torch.ones_like(largest)
        if first < len(largest):
            found[first:] = (count - first) * largest[first:] / rest[first]
        return torch.empty_like(found).index_copy_(0, where, found)

    def mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over all images and its standard error, both ``[R]``, from the ``values [R, n]`` of the first n.

        The standard error of a single value of several is 0, and means nothing.
        """
        count = values.shape[1]
        likely = self.inclusion(count)[self.order[:count]]
        weights = 1 / likely
        mean = (values * weights).sum(1) / weights.sum()
        apart = (1 - likely) * weights**2 * (values - mean[:, None]) ** 2
        return mean, (apart.sum(1) * count / max(count - 1, 1)).sqrt() / weights.sum()
