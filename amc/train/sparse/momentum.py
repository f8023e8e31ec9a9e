"""Sparse momentum (Dettmers & Zettlemoyer 2019, Sparse Networks from Scratch: Faster Training without Losing
Performance, arXiv:1907.04840, section 3).

Every layer loses the share p of its smallest weights. As many are grown in all, in proportion to every layer's mean
absolute momentum of the weights that it has, and within a layer where the momentum of missing weights is largest. p
falls to 0 as half of a cosine. Deviations: the momentum is an exponential moving average (0.9) of the gradients of all
weights that is kept for this alone; the optimiser's covers the weights that there are.
"""

from __future__ import annotations

from amc.train.sparse.density import allocate
from amc.train.sparse.rules import Changes, Share, SparseRule, Until
from amc.train.sparse.state import Masks, SparseState, changed, dropped, largest


def redistribute(state: SparseState, share: float) -> Masks:
    """Drop the smallest weights of every layer, and grow as many where momentum is largest."""
    masks, removed = dropped(state, share)
    means = [float(state.momentum[name].abs()[mask].mean()) for name, mask in state.masks.items()]
    room = [mask.numel() - int(mask.sum()) for mask in masks.values()]
    grown = allocate(sum(removed.values()), means, room, [0] * len(room))
    return {name: changed(mask, largest(state.momentum[name], ~mask, count), True)
            for (name, mask), count in zip(masks.items(), grown, strict=True)}  # fmt: skip


def momentum_rule(*, share: Share = 0.5, changes: Changes = 30, until: Until = 1.0) -> SparseRule:
    """Growth by momentum, between layers too."""
    return SparseRule(redistribute, share, changes, until, decays=True, needs_momentum=True)
