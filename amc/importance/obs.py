"""Block Optimal Brain Surgeon: greedy removal of the channel that the other channels compensate for best.

Hassibi & Stork 1993, for blocks of weights as in Optimal Brain Compression (arXiv:2208.11580). Per reader:

=====  =====================================================================================
C      covariance of its inputs, with a ridge; ``H = C⁻¹`` restricted to what is left
S      the elements of one channel (its positions, all taps)
score  Σ over outputs of W_S (H_SS)⁻¹ W_Sᵀ: the rise of the squared error, others re-solved
=====  =====================================================================================

Readers are weighted by the inverse variance of their outputs, so that all readers of a stream count alike. Removing S:
``W ← W − W_S (H_SS)⁻¹ H_S:`` and ``H ← H − H_:S (H_SS)⁻¹ H_S:``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.importance.criterion import Criterion, Need, descending
from amc.importance.group import Reader, SiteView
from amc.importance.magnitude import l2
from amc.reconstruction.rows import elements

RIDGE = 1e-2
_ROUNDS = 128  # wide sites lose several channels a round
_DENSE = 0.8  # matrices with a smaller share of elements left are compacted


def obs(site: SiteView) -> Tensor:
    """Channels ``[C]``, the last to be removed first; by their L2 norm where no inputs were collected.

    Of two channels that are always equal one is removed first, since the other compensates for it:

    >>> from amc.reconstruction import Moments
    >>> moments = Moments(torch.zeros(3), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 100)
    >>> reader = Reader(torch.tensor([[[2.0], [1.0], [1.0]]]), torch.arange(3), torch.arange(3), moments)
    >>> obs(SiteView(3, readers=(reader,))).tolist()
    [0, 2, 1]
    """
    solvers = [_Surgeon(r, site.channels) for r in site.readers if r.moments is not None]
    if not solvers:
        return descending(l2(site))
    present = torch.ones(site.channels, dtype=torch.bool)
    removed: list[int] = []
    at_once = max(1, site.channels // _ROUNDS)
    while len(removed) < site.channels - 1:
        scores = torch.stack([s.scores(present) for s in solvers]).sum(0)
        scores[~present] = torch.inf
        count = min(at_once, site.channels - 1 - len(removed))
        least = scores.argsort(stable=True)[:count]
        removed += least.tolist()
        present[least] = False
        for solver in solvers:
            solver.remove(least)
    removed.append(int(present.nonzero()[0, 0]))
    return torch.tensor(removed[::-1])


@dataclass(eq=False)
class _Surgeon:
    """One reader's weights and inverse covariance while channels are removed."""

    reader: Reader
    channels: int

    def __post_init__(self) -> None:
        assert self.reader.moments is not None
        c = self.reader.moments.covariance.clone()
        c.diagonal().add_(RIDGE * c.diagonal().mean() + torch.finfo(torch.float32).tiny)
        self._w = self.reader.weight.flatten(1).to(c.dtype)
        variance = ((self._w @ c) * self._w).sum().clamp_min(torch.finfo(c.dtype).tiny)
        self._w = self._w / variance.sqrt()
        factor, bad = torch.linalg.cholesky_ex(c)
        self._h = torch.linalg.pinv(c, hermitian=True) if int(bad) else torch.cholesky_inverse(factor)
        taps = self.reader.weight.shape[2]
        order = self.reader.channels.argsort(stable=True)
        per_channel = len(order) // self.channels
        blocks = self.reader.positions[order].reshape(self.channels, per_channel)
        self._blocks = torch.stack([elements(b, taps) for b in blocks])  # [channels, b]
        self._alive = torch.ones(len(self._h), dtype=torch.bool, device=self._h.device)

    def scores(self, present: Tensor) -> Tensor:
        """Rise of the squared error ``[channels]``, as a share of the outputs' variance; 0 for removed channels."""
        found = torch.zeros(self.channels, dtype=self._h.dtype)
        here = present.nonzero()[:, 0]
        index = self._blocks[here]
        w = self._w[:, index].permute(1, 2, 0)  # [n, b, out]
        h = self._h[index[:, :, None], index[:, None, :]]
        squares = w @ w.transpose(1, 2)  # the trace of H⁻¹WWᵀ is that of WᵀH⁻¹W, and smaller
        found[here] = torch.linalg.solve(h, squares).diagonal(dim1=1, dim2=2).sum(1).cpu()
        return found.double()

    def remove(self, channels: Tensor) -> None:
        """Remove channels, all at once, and re-solve the others."""
        s = self._blocks[channels].flatten()
        rows = self._h[s]
        update = torch.linalg.solve(rows[:, s], rows)  # (H_SS)⁻¹ H_S:
        self._w.addmm_(self._w[:, s], update, alpha=-1)
        self._h.addmm_(rows.T, update, alpha=-1)
        self._alive[s] = False
        if int(self._alive.sum()) < _DENSE * len(self._alive):
            self._compact()

    def _compact(self) -> None:
        """Drop the rows and columns of removed elements."""
        keep = self._alive.nonzero()[:, 0]
        self._h = self._h.index_select(0, keep).index_select(1, keep)
        self._w = self._w.index_select(1, keep)
        self._blocks = (self._alive.cumsum(0) - 1)[self._blocks]  # removed channels are not read again
        self._alive = torch.ones_like(keep, dtype=torch.bool)


CRITERION = Criterion(
    "obs",
    "least rise of the re-solved squared error, greedily",
    "Hassibi & Stork 1993; Frantar & Alistarh 2022, Optimal Brain Compression, arXiv:2208.11580",
    obs,
    frozenset({Need.READERS, Need.MOMENTS}),
    gives="order",
)
