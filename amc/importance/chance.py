"""Random scores: the baseline of all criteria (Mittal et al. 2018, arXiv:1801.10447, find it hard to beat)."""

from __future__ import annotations

import torch
from torch import Tensor

from amc.importance.criterion import Criterion
from amc.importance.group import SiteView


def random(site: SiteView) -> Tensor:
    """Scores in [0, 1) ``[C]``, drawn from the seed of the run and the number of the site.

    >>> bool((random(SiteView(3, seed=1)) == random(SiteView(3, seed=1))).all())
    True
    """
    generator = torch.Generator().manual_seed(site.seed)
    return torch.rand(site.channels, generator=generator, dtype=torch.float64)


CRITERION = Criterion(
    "random",
    "drawn from the seed: the baseline",
    "Mittal et al. 2018, Recovering from Random Pruning, arXiv:1801.10447",
    random,
    frozenset(),
    dead_is_least=False,
    is_random=True,
)
