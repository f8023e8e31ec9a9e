"""What time is worth to a search whose budget limits something else.

Networks of equal MACs differ in time: a runtime computes channels in blocks, and starting an operator takes time
however few channels it has. A search that knows this minimises

    loss · (predicted time / time of the original) ** exponent

instead of the loss: the soft constraint of MnasNet (Tan et al. 2019, arXiv:1807.11626, equation 2) with the loss in
place of the accuracy. Of two networks that are nearly as good, the faster one wins. Times are predictions
(`amc.latency`); what is delivered is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amc.space.budget import Space
from amc.space.sites import Choice, Floats


@dataclass(frozen=True)
class LatencyWeight:
    """How much a policy's time counts beside its loss.

    >>> weight = LatencyWeight(exponent=2.0, original_ms=4.0)
    >>> weight.factor({"macs": 1e6, "latency": 2.0})
    0.25
    """

    exponent: float
    """One per cent of time is worth so many per cent of the loss."""
    original_ms: float

    def factor(self, costs: Mapping[str, float]) -> float:
        """What the loss of a policy with these ``costs`` is multiplied by. ``latency`` is in milliseconds."""
        return float((costs["latency"] / self.original_ms) ** self.exponent)

    def prices(self, space: Space, policy: Choice, error: float) -> list[Floats]:
        """What the time of every setting is worth, in units of ``error``, which is that of ``policy``.

        Around a policy, ``error · time ** exponent`` changes as ``error + exponent · error · time / its time`` does. So
        what a site's setting adds to the time of ``policy`` can be added to its error. Each site's least is 0.
        """
        ms, positions = space.costs(policy)["latency"], space.positions(policy)
        found = []
        for site, count in enumerate(space.lengths.tolist()):
            rows = positions.repeat(count).reshape(-1, count).T.copy()
            rows[:, site] = range(count)
            times = space.costs_at(rows)["latency"]
            found.append(self.exponent * error * (times - times.min()) / ms)
        return found
