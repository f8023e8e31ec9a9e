"""Learning-rate rewinding (Renda, Frankle & Carbin 2020, arXiv:2003.02389, section 3).

The weights that are left are trained by the learning rates of the original's training from t epochs before its end on.
The recovery is as long as the configuration says (``--finetune-epochs``), and that is t. The original's whole training
is so many times longer that t is its last ``share``; with a share of 1 the whole schedule is gone through again.

Deviation: the original's schedule is not known to amc, so its peak and its shape are settings; the default is the one
that residual networks for small images are usually trained with (He et al. 2016, arXiv:1512.03385, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from amc.runtime.registry import about
from amc.train.plan import OneCycle, Plan, Rate
from amc.train.recovery import Pruned, Recovered


@dataclass(frozen=True)
class Steps:
    """The peak rate, divided by ten after half and after three quarters of the steps.

    >>> [Steps()(step, 8) for step in (0, 3, 4, 6)]
    [1.0, 1.0, 0.1, 0.01]
    """

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak rate; see `amc.train.plan.Rate`."""
        return 1.0 if 2 * step < steps else 0.1 if 4 * step < 3 * steps else 0.01


@dataclass(frozen=True)
class LastPart:
    """The last ``share`` of another schedule.

    >>> half = LastPart(Steps(), 0.5)
    >>> [half(step, 4) for step in range(4)]
    [0.1, 0.1, 0.01, 0.01]
    """

    rate: Rate
    share: float

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak rate; see `amc.train.plan.Rate`."""
        whole = max(steps, round(steps / self.share))
        return self.rate(whole - steps + step, whole)


RATES: Mapping[str, Rate] = {"steps": Steps(), "cycle": OneCycle()}


def rewind_rates(
    pruned: Pruned,
    plan: Plan,
    *,
    lr: Annotated[float, about("peak learning rate of the original's training", gt=0, le=1000)] = 0.1,
    rates: Annotated[Literal["steps", "cycle"], about("its shape: steps (÷ 10 at 1/2 and 3/4) or cycle")] = "steps",
    share: Annotated[float, about("last part of it that is gone through again", gt=0, le=1)] = 1.0,
) -> Recovered:
    """Train the weights that are left by the original's learning rates."""
    return Recovered(pruned.model, replace(plan, lr=lr, rate=LastPart(RATES[rates], share)))
