"""Sparse BatchNorm scales (Liu et al. 2017, Network Slimming, arXiv:1708.06519, equation 1).

    L = Σ l(f(x, W), y) + λ Σ_γ |γ|

Trained so, a network's unimportant channels get scales near 0, by which ``--criterion bn-scale`` then ranks. Deviation:
scales of every BatchNorm count, streams' too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.graph.channels import BATCH_NORMS
from amc.train.hooks import Hook, Step


@dataclass(frozen=True)
class SparseNorms(Hook):
    """Adds λ Σ |γ| over all BatchNorms to the loss. The gradient of |γ| at 0 is 0, as the paper's subgradient.

    >>> from torch import nn
    >>> SparseNorms(0.1).penalty(Step(nn.BatchNorm2d(3), 0, 1, 1)).item()
    0.30000001192092896
    """

    strength: float = 1e-4
    """λ."""

    def penalty(self, step: Step) -> Tensor | None:
        """λ Σ |γ|; None for a network without BatchNorm scales."""
        norms = [m for m in step.model.modules() if isinstance(m, BATCH_NORMS) and m.affine]
        return self.strength * torch.stack([m.weight.abs().sum() for m in norms]).sum() if norms else None
