"""What a search maximises. Error is ``1 - metric``, a share in [0, 1].

=============  =============================  ======================================================
name           reward                         source
=============  =============================  ======================================================
error          -Error                         AMC (arXiv:1802.03494), section 3.3, resource-constrained
error-flops    -Error · log(MACs)             AMC, section 3.3, accuracy-guaranteed
error-params   -Error · log(parameters)       AMC, section 3.3, accuracy-guaranteed
error-latency  -Error · log(1 + microseconds) the same for time; needs the cost 'latency' (ms)
loss           -loss, as it is judged         finer than the error on few images
=============  =============================  ======================================================

A user's function ``file.py:name`` takes the Evaluation and returns a number.
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
    """Why the evaluation failed; its loss is then infinite and its metric 0."""
    reward: float = field(default=-math.inf)
    share: float = 1.0
    """Of the search split that was read: less where a race was decided before its end. The rest is estimated."""
    rejected: bool = False
    """Whether a race was decided in favour of another policy before its end."""


Reward = Callable[[Evaluation], float]
"""A function with the attribute ``needs_latency = True`` finds ``latency`` (ms, measured) among the costs."""


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
    """-Error · log(1 + microseconds)."""
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
    """A reward by name, or the one that ``file.py:function`` names. Raises ConfigError."""
    return REWARDS.load(name)
