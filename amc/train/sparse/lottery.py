"""RigL (Evci et al. 2020, Rigging the Lottery: Making All Tickets Winners, arXiv:1911.11134, algorithm 1).

Every layer loses the share f(t) of its smallest weights, and gets as many where the gradients of missing weights are
largest. f(t) = α/2 (1 + cos(π t / T_end)), and there are no changes after T_end. Weights that were dropped in the same
change may be grown again. Deviations: changes come at equal distances, as many as the setting says (the paper: every
100 steps).
"""

from __future__ import annotations

from amc.train.sparse.rules import Changes, Share, SparseRule, Until
from amc.train.sparse.state import Masks, SparseState, changed, dropped, largest


def rig(state: SparseState, share: float) -> Masks:
    """Drop the smallest weights of every layer, and grow as many where gradients are largest."""
    masks, removed = dropped(state, share)
    return {
        name: changed(mask, largest(state.gradients[name], ~mask, removed[name]), True) for name, mask in masks.items()
    }


def rigl_rule(*, share: Share = 0.3, changes: Changes = 30, until: Until = 0.75) -> SparseRule:
    """Growth by gradients."""
    return SparseRule(rig, share, changes, until, decays=True)
