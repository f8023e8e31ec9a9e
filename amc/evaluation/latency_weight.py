"""Latency as a soft constraint, for a search whose budget limits another resource.

Networks with equal MACs differ in latency: a runtime computes channels in blocks, and starting an operator takes time
even with few channels. With a latency weight, a search minimises

    loss · (predicted latency / latency of the original) ** exponent

instead of the loss. This is the soft constraint of MnasNet (Tan et al. 2019, arXiv:1807.11626, equation 2) with the
loss in place of the accuracy. Of two networks with nearly the same loss, the faster one wins. The search uses
predicted latencies (`amc.latency`); the delivered network is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amc.space.budget import Space
from amc.space.sites import Choice, Floats


@dataclass(frozen=True)
class LatencyWeight:
    """The weight of a policy's latency relative to its loss.

    >>> weight = LatencyWeight(exponent=2.0, original_ms=4.0)
    >>> weight.factor({"macs": 1e6, "latency": 2.0})
    0.25
    """

    exponent: float
    """Per cent of the loss that 1 % of latency is worth."""
    original_ms: float

    def factor(self, costs: Mapping[str, float]) -> float:
        """The factor for the loss of a policy with these ``costs``, in which ``latency`` is in milliseconds."""
        return float((costs["latency"] / self.original_ms) ** self.exponent)

    def prices(self, space: Space, policy: Choice, error: float) -> list[Floats]:
        """The latency of every setting, converted to units of ``error``, which is the error of ``policy``.

        Near a policy, ``error · latency ** exponent`` is linear: it changes like ``error + exponent · error · latency /
        latency(policy)``. So the latency that a setting adds can be added to the setting's error. The least value of
        every site is 0.
        """
        ms, positions = space.costs(policy)["latency"], space.positions(policy)
        found = []
        for site, count in enumerate(space.lengths.tolist()):
            rows = positions.repeat(count).reshape(-1, count).T.copy()
            rows[:, site] = range(count)
            times = space.costs_at(rows)["latency"]
            found.append(self.exponent * error * (times - times.min()) / ms)
        return found
