"""Rewards, which a search maximises. Error is ``1 - metric``, in [0, 1].

=============  =============================  ======================================================
name           reward                         source
=============  =============================  ======================================================
error          -Error                         AMC (arXiv:1802.03494), section 3.3, resource-constrained
error-flops    -Error · log(MACs)             AMC, section 3.3, accuracy-guaranteed
error-params   -Error · log(parameters)       AMC, section 3.3, accuracy-guaranteed
error-latency  -Error · log(1 + microseconds) the same for latency; needs the cost 'latency' (ms)
loss           -loss                          objective of the search; finer-grained than the error
=============  =============================  ======================================================

A user's function ``file.py:name`` takes an `Evaluation` and returns a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from amc.runtime.registry import Entry, Registry
from amc.space.sites import Choice


@dataclass(frozen=True)
class Evaluation:
    """A policy's score on the search split, and its costs."""

    choice: Choice
    loss: float
    metric: float
    costs: Mapping[str, float]
    seconds: float
    error: str | None = None
    """The reason of a failed evaluation, whose loss is infinite and whose metric is 0; None otherwise."""
    reward: float = field(default=-math.inf)
    share: float = 1.0
    """Share of the search split that was evaluated. It is below 1 after a race; loss and metric are then estimates."""
    rejected: bool = False
    """Whether the policy lost a race before all samples were evaluated."""


Reward = Callable[[Evaluation], float]
"""If a reward has the attribute ``needs_latency = True``, the costs include the measured ``latency`` in ms."""


def error(evaluation: Evaluation) -> float:
    """-Error."""
    return -(1 - evaluation.metric)


def error_flops(evaluation: Evaluation) -> float:
    """-Error · log(MACs)."""
    return -(1 - evaluation.metric) * math.log(evaluation.costs["macs"])


def error_params(evaluation: Evaluation) -> float:
    """-Error · log(parameters)."""
    return -(1 - evaluation.metric) * math.log(evaluation.costs["params"])


def error_latency(evaluation: Evaluation) -> float:
    """-Error · log(1 + microseconds).

    >>> round(error_latency(Evaluation((8,), 0.3, 0.9, {"latency": 2.0}, 0.1)), 4)
    -0.7601
    """
    return -(1 - evaluation.metric) * math.log1p(1000 * evaluation.costs["latency"])


error_latency.needs_latency = True  # type: ignore[attr-defined]


def loss(evaluation: Evaluation) -> float:
    """-loss."""
    return -evaluation.loss


REWARDS: Registry[Reward] = Registry(
    "reward",
    "amc.rewards",
    (
        Entry("loss", "minus the loss of --search-objective: finer than the error on few images", loader=lambda: loss),
        Entry("error", "-error, for a limit on resources", "", "He et al. 2018, section 3.3", lambda: error),
        Entry("error-flops", "-error · log(MACs)", "", "He et al. 2018, section 3.3", lambda: error_flops),
        Entry("error-params", "-error · log(parameters)", "", "He et al. 2018, section 3.3", lambda: error_params),
        Entry("error-latency", "-error · log(1 + microseconds), measured", loader=lambda: error_latency),
    ),
)


def rewards() -> dict[str, Entry[Reward]]:
    """All rewards by name, those of installed packages included."""
    return REWARDS.entries()


def load_reward(name: str) -> Reward:
    """A reward by its name or as ``file.py:function``. Raises ConfigError."""
    return REWARDS.load(name)
