"""Sparse evolutionary training (Mocanu et al. 2018, Scalable Training of Artificial Neural Networks with Adaptive
Sparse Connectivity, arXiv:1707.04780, algorithm 1).

After every epoch each layer loses the share ζ of its weights that are closest to 0, and gets as many new ones at
random. Deviations: changes come at equal distances, as many as the setting says; new weights are 0, where the paper
draws them.
"""

from __future__ import annotations

from amc.train.sparse.rules import Changes, Share, SparseRule, Until
from amc.train.sparse.state import Masks, SparseState, changed, drawn, dropped


def evolve(state: SparseState, share: float) -> Masks:
    """Drop the smallest weights of every layer, and grow as many elsewhere, at random."""
    masks, removed = dropped(state, share)
    return {name: changed(mask, drawn(mask, removed[name]), True) for name, mask in masks.items()}


def set_rule(*, share: Share = 0.3, changes: Changes = 30, until: Until = 1.0) -> SparseRule:
    """Random growth in every layer."""
    return SparseRule(evolve, share, changes, until, decays=False)
