"""Sparse BatchNorm scales (Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming,
arXiv:1708.06519, equation 1).

    L = Σ l(f(x, W), y) + λ Σ_γ |γ|

A channel's score is the sum of |γ| over the BatchNorms of its group. Deviations: the scales of all BatchNorms count,
those of residual streams too; the paper has a layer that selects channels there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from amc.errors import ConfigError
from amc.graph.channels import BATCH_NORMS
from amc.importance.group import Norm
from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparse_norms import SparseNorms
from amc.train.sparsify.channels import ChannelWeights
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier


class NormL1(Sparsifier):
    """Adds λ Σ |γ| to the loss."""

    def __init__(self, network: DenseNetwork, strength: float) -> None:
        self._strength = strength
        self._penalty = SparseNorms(strength)
        everything = ChannelWeights.of(network.graph, network.model)
        norms = tuple(tuple(s for s in group if s.kind is Norm) for group in everything.slots)
        self._norms = ChannelWeights(everything.names, everything.channels, norms)

    def penalty(self, step: Step) -> Tensor | None:
        """λ Σ |γ| over all BatchNorms."""
        return self._penalty.penalty(step)

    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Σ |γ| of every channel; sites without BatchNorm have none."""
        sums = self._norms.total(model, torch.abs)
        return {name: own.detach() for name, own, group in zip(self._norms.names, sums, self._norms.slots, strict=True)
                if group}  # fmt: skip

    def state(self) -> Mapping[str, float]:
        """λ: a training with another one is another training."""
        return {"strength": self._strength}

    def restore(self, state: Mapping[str, float]) -> None:
        """Raises ValueError for a training with another λ."""
        if state["strength"] != self._strength:
            raise ValueError("another strength")


def norm_l1(
    network: DenseNetwork,
    plan: Plan,
    *,
    strength: Annotated[float, about("λ, the weight of Σ |γ| in the loss", gt=0, le=1000)] = 1e-3,
) -> Sparsifier:
    """Penalise the scales of all BatchNorms. Raises ConfigError for a network that has none."""
    if not any(isinstance(module, BATCH_NORMS) and module.affine for module in network.model.modules()):
        raise ConfigError("--sparsify bn-l1 penalises scales of BatchNorms, and this network has none: "
                          "use another, such as --sparsify group-lasso.")  # fmt: skip
    return NormL1(network, strength)
