"""Widths from a criterion's scores alone, without a search: the scope of a criterion.

========  ================================================================================================
scope     a channel stays where
========  ================================================================================================
site      the searcher chooses how many stay; the criterion which (the default, not in this module)
local     its score is among the same share of every site's
global    its score is above one threshold for the whole network, found for the budget
flops     S − λ F > 0, with λ found for the budget (Molchanov et al. 2016, arXiv:1611.06440, section 2.4)
========  ================================================================================================

Scores of different sites are made comparable by dividing each site's by their L2 norm (Molchanov et al., equation 10).
F is the share of the network's MACs that a channel takes; the paper fixes λ at 0.001 and stops at a budget, here λ is
the multiplier of the budget. No site goes below its smallest setting, so no layer collapses; `ScopedPolicy.saved` says
which would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amc.space.budget import Space
from amc.space.sites import Choice

Scope = Literal["site", "local", "global", "flops"]
_STEPS = 80  # halvings of an interval
_LEAST = 1e-9  # a channel without MACs of its own is nearly free


@dataclass(frozen=True)
class ScopedPolicy:
    """A policy, and the sites whose scores alone would have left fewer channels than their smallest setting."""

    choice: Choice
    saved: tuple[str, ...] = ()


def normalised(scores: Sequence[Tensor]) -> list[NDArray[np.float64]]:
    """Every site's scores divided by their L2 norm, the highest first.

    >>> import torch
    >>> [site.tolist() for site in normalised([torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])])]
    [[0.8, 0.6], [0.0, 0.0]]
    """
    found = []
    for own in scores:
        values = np.sort(own.double().cpu().numpy())[::-1]
        norm = float(np.linalg.norm(values))
        found.append(values / norm if norm > 0 else values)
    return found


def select(scope: Scope, scores: Sequence[Tensor], space: Space) -> ScopedPolicy:
    """The widest policy within the budget that a scope gives for the scores ``[C]`` of every site."""
    if scope == "local":
        return ScopedPolicy(space.fit(np.ones(len(space.names))))
    ranked = normalised(scores)
    prices = _prices(space) if scope == "flops" else np.zeros(len(ranked))

    def widths(level: float) -> NDArray[np.int64]:
        """How many channels of every site stay above the threshold, or at the multiplier."""
        levels = prices * level if scope == "flops" else np.full(len(ranked), level)
        return np.array([int((own > least).sum()) for own, least in zip(ranked, levels, strict=True)])

    low, high = (
        (0.0, 2 / float(prices.min())) if scope == "flops" else (-1.0, 1.0)
    )  # at high only the smallest settings stay
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if bool(space.fits([_legal(space, widths(middle))])[0]):
            high = middle
        else:
            low = middle
    found = widths(high)
    smallest = space.sizes_of(space.smallest)
    saved = tuple(name for name, width, least in zip(space.names, found, smallest, strict=True) if width < least)
    return ScopedPolicy(_legal(space, found), saved)


def _legal(space: Space, widths: NDArray[np.int64]) -> Choice:
    """For every site the largest setting that is not over its width, or its smallest."""
    places = [max(0, int(np.searchsorted(site.sizes, width, side="right")) - 1)
              for site, width in zip(space.sites, widths, strict=True)]  # fmt: skip
    return space.choice(places)


def _prices(space: Space) -> NDArray[np.float64]:
    """The share of the network's MACs that one channel of every site takes ``[S]``."""
    full, last = space.costs(space.full)["macs"], space.positions(space.full)
    prices = np.full(len(last), _LEAST)
    for site in range(len(last)):
        places = last.copy()
        places[site] = max(0, places[site] - 1)
        less = space.choice(places)
        removed = space.full_sizes[site] - space.sizes_of(less)[site]
        if removed:
            prices[site] = max(_LEAST, (full - space.costs(less)["macs"]) / full / removed)
    return prices
