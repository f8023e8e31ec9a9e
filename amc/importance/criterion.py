"""What a criterion is: a rule that scores the channels of one site, and the statistics that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeVar

from torch import Tensor

from amc.importance.group import SiteView


class Need(StrEnum):
    """What a criterion may need. Only what it declares is collected and given to it."""

    READERS = "readers"
    """Weights of the layers that read the site's channels."""
    PRODUCERS = "producers"
    """Weights of the layers that produce them."""
    NORMS = "norms"
    """Scales and shifts of the normalisations over them."""
    MOMENTS = "moments"
    """Mean and covariance of the readers' inputs. A reader that cannot be re-solved has none."""
    ACTIVATIONS = "activations"
    """Statistics of the site's feature maps: one forward pass."""
    GRADIENTS = "gradients"
    """Derivatives of the loss by activations and weights, sample by sample: one backward pass."""
    CURVATURE = "curvature"
    """Second derivatives of the loss by every weight: backward passes through a backward pass."""
    FLOW = "flow"
    """Synaptic flow: passes of the network with positive weights, without data."""
    ATTENTION = "attention"
    """Attention of modules that are trained briefly to scale the channels."""


T = TypeVar("T")


class Lacking(Exception):
    """A site lacks what a criterion scores by; the message names it, such as ``normalisations``."""


def required(value: T | None, what: str) -> T:
    """The value. Raises `Lacking` where it is None or empty.

    >>> required((1, 2), "normalisations")
    (1, 2)
    """
    if value is None or (isinstance(value, tuple) and not value):
        raise Lacking(what)
    return value


@dataclass(frozen=True)
class Criterion:
    """A rule that says which of a site's channels matter most.

    ``function`` takes a `SiteView` and gives scores ``[C]``, higher for more important channels, or, where ``gives``
    is ``"order"``, the channels themselves, the most important first. It has no state and changes nothing.

    >>> import torch
    >>> from amc.importance import Producer, SiteView
    >>> def largest(site):
    ...     return site.total(site.producers, lambda part: part.rows().abs().amax(1))
    >>> criterion = Criterion("largest", "largest weight of a filter", "", largest, frozenset({Need.PRODUCERS}))
    >>> filters = Producer(torch.tensor([[[1.0]], [[-3.0]], [[2.0]]]), torch.arange(3), torch.arange(3))
    >>> criterion.scores(SiteView(3, (), (filters,))).tolist()
    [1.0, 3.0, 2.0]
    >>> criterion(SiteView(3, (), (filters,))).tolist()
    [1, 2, 0]
    """

    name: str
    summary: str
    """One line for ``amc list criteria``."""
    reference: str
    """The paper, with its arXiv number; empty for a rule of the user's own."""
    function: Callable[[SiteView], Tensor]
    needs: frozenset[Need] = frozenset({Need.READERS})
    gives: Literal["scores", "order"] = "scores"
    dead_is_least: bool = True
    """Whether by the formula a channel whose weights are all 0 is less important than any other."""
    is_random: bool = False
    """Whether the scores are drawn, so that they say nothing about the channels."""

    def __call__(self, site: SiteView) -> Tensor:
        """The site's channels ``[C]``, the most important first."""
        found = self.function(site)
        return found if self.gives == "order" else descending(found)

    def scores(self, site: SiteView) -> Tensor:
        """Scores ``[C]``, higher for more important channels. Those of an order are C, C - 1, …, 1."""
        found = self.function(site)
        if self.gives == "scores":
            return found
        return (len(found) - found.argsort()).double()


def descending(scores: Tensor) -> Tensor:
    """Channels by falling score; ties keep their order.

    >>> import torch
    >>> descending(torch.tensor([1.0, 3.0, 3.0])).tolist()
    [1, 2, 0]
    """
    return scores.argsort(descending=True, stable=True)
