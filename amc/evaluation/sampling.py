"""The order of samples in races, and an estimate of the mean over all samples from the first few.

On most samples the losses of two policies hardly differ, since both are right. So samples on which the original has a
large loss come first, and each is weighted by the inverse of its inclusion probability: sequential Poisson sampling
(Ohlsson 1998, Journal of Official Statistics 14) with Hájek's estimator of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FLOOR = 0.2
"""Least size of a sample, relative to one of mean loss: a sample may be easy for one policy and hard for another."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """An order of samples ``[N]``, drawn without replacement with probabilities in proportion to their sizes.

    >>> sampling = Sampling(torch.ones(4, dtype=torch.float64))
    >>> mean, error = sampling.mean(torch.ones(1, 2))
    >>> float(mean), float(error)
    (1.0, 0.0)
    """

    sizes: Tensor
    """Expected difference of losses on every sample ``[N]``, in any unit, above 0."""
    seed: int = 0

    @classmethod
    def by_losses(cls, losses: Tensor) -> Sampling:
        """Sampling with sizes that grow with the square root of a known network's losses ``[N]``."""
        above = losses - losses.min()
        return cls((above / above.mean().clamp_min(torch.finfo(above.dtype).tiny)).sqrt() + _FLOOR)

    @cached_property
    def order(self) -> Tensor:
        """The indices of the samples ``[N]`` in the order of evaluation."""
        draws = torch.rand(len(self.sizes), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return (draws / self.sizes).argsort()

    @cached_property
    def _ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sizes in descending order, their indices, and the sum of all sizes from each one on; all ``[N]``."""
        largest, where = self.sizes.sort(descending=True)
        return largest, where, largest.flip(0).cumsum(0).flip(0)

    def inclusion(self, count: int) -> Tensor:
        """Probability of every sample ``[N]`` to be among the first ``count``: proportional to its size, at most 1."""
        largest, where, rest = self._ranked
        certain = torch.arange(len(largest))
        share = (count - certain) * largest / rest  # of this one, when those before it are certain
        first = int((share < 1).double().argmax()) if bool((share < 1).any()) else len(largest)
        found = torch.ones_like(largest)
        if first < len(largest):
            found[first:] = (count - first) * largest[first:] / rest[first]
        return torch.empty_like(found).index_copy_(0, where, found)

    def mean(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated mean over all samples and its standard error, both ``[R]``, from ``values [R, n]`` of the first n.

        For n = 1 the standard error is 0, which is meaningless.
        """
        count = values.shape[1]
        likely = self.inclusion(count)[self.order[:count]]
        weights = 1 / likely
        mean = (values * weights).sum(1) / weights.sum()
        apart = (1 - likely) * weights**2 * (values - mean[:, None]) ** 2
        return mean, (apart.sum(1) * count / max(count - 1, 1)).sqrt() / weights.sum()
