"""Weight rewinding (Frankle & Carbin 2019, arXiv:1803.03635; late rewinding: Frankle et al. 2020, arXiv:1903.01611).

The channels that stay get the values that they had early in the original's training, and are trained from there. Those
values are in a file of the user's: of ``amc train --keep-early 0.03``, which writes it beside the original's weights,
or of any other training that gave the original.
"""

from __future__ import annotations

import copy
from typing import Annotated

from amc.runtime.registry import about
from amc.task.models import load_weights
from amc.train.plan import Plan
from amc.train.recovery import Pruned, Recovered


def rewind_weights(
    pruned: Pruned,
    plan: Plan,
    *,
    weights: Annotated[str, about("file with the original's weights from early in its training")],
) -> Recovered:
    """Go back to early weights of the original, prune them in the same way, and train them."""
    early = copy.deepcopy(pruned.original)
    load_weights(early, weights)
    for now, before in zip(early.parameters(), pruned.original.parameters(), strict=True):
        now.requires_grad_(before.requires_grad)
    return Recovered(pruned.cut(early), plan)
