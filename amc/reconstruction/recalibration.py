"""Recomputed BatchNorm statistics of a pruned network (EagleEye, Li et al. 2020, arXiv:2007.02491)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.reconstruction.moments import IMAGES
from amc.task import Task, batches, nested
from amc.task.splits import sample


def recalibrate(network: nn.Module, norms: Sequence[_BatchNorm], task: Task) -> None:
    """Give ``norms``, modules of ``network``, the statistics of `IMAGES` samples of the calibration split.

    They are in evaluation mode afterwards, even when a forward pass fails.
    """
    calibration = sample(task.splits.calibration, IMAGES)
    passes = -(-len(calibration) // task.batch)
    size = -(-len(calibration) // passes)  # batches of equal size have equal weight
    saved = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            _begin_average(norm)
        with torch.no_grad():
            for inputs, _ in batches(calibration, size):
                nested.call(network, nested.to(inputs, task.device))
    finally:
        for norm, momentum in zip(norms, saved, strict=True):
            norm.momentum = momentum
            norm.eval()


def _begin_average(norm: _BatchNorm) -> None:
    """Start a cumulative average of the statistics, in tensors of their own."""
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean = torch.zeros_like(norm.running_mean)
        norm.running_var = torch.ones_like(norm.running_var)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=norm.running_mean.device)
    norm.momentum = None
    norm.train()
