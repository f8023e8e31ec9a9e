"""Dynamic sparse reparameterisation (Mostafa & Wang 2019, Parameter Efficient Training of Deep Convolutional Neural
Networks by Dynamic Sparse Reparameterization, arXiv:1902.05967, algorithm 1).

The weights with the smallest absolute values of the whole network are removed, K in all. Layer l gets K R_l / Σ R new
ones at random, where R_l of its weights have stayed: layers that lose few gain many. Deviations: exactly the given
share is removed, where the paper keeps a threshold that it doubles and halves; every layer keeps a weight at least.
"""

from __future__ import annotations

import torch

from amc.train.sparse.density import allocate
from amc.train.sparse.rules import Changes, Share, SparseRule, Until
from amc.train.sparse.state import Masks, SparseState, changed, drawn, smallest


def reparameterise(state: SparseState, share: float) -> Masks:
    """Drop the smallest weights of the network, and grow as many at random in proportion to what has stayed."""
    names = list(state.masks)
    sizes = {name: int(state.masks[name].sum()) for name in names}
    total = int(share * sum(sizes.values()))
    values = torch.cat([state.weights[name].abs()[state.masks[name]].flatten() for name in names])
    owners = torch.cat([torch.full((sizes[name],), number) for number, name in enumerate(names)])
    first = owners.to(values.device)[values.argsort(stable=True)[:total]]
    removed = {name: min(int((first == number).sum()), sizes[name] - 1) for number, name in enumerate(names)}
    masks = {name: changed(state.masks[name], smallest(state.weights[name], state.masks[name], removed[name]), False)
             for name in names}  # fmt: skip
    stayed = [sizes[name] - removed[name] for name in names]
    room = [state.masks[name].numel() - left for name, left in zip(names, stayed, strict=True)]
    grown = allocate(sum(removed.values()), [float(left) for left in stayed], room, [0] * len(names))
    return {
        name: changed(masks[name], drawn(masks[name], count), True) for name, count in zip(names, grown, strict=True)
    }


def dsr_rule(*, share: Share = 0.2, changes: Changes = 30, until: Until = 1.0) -> SparseRule:
    """Random growth, between layers too."""
    return SparseRule(reparameterise, share, changes, until, decays=False)
