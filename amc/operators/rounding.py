"""Rounding of weights by least squares: columns one after another, each error made up for by the columns to come.

For weights W ``[C, D]``, inputs x ``[D]`` and their second moments H = E x xᵀ, the rounded weights Q are to have a
small error E‖(W − Q) x‖². Columns are rounded in the order of falling H_jj. After each, the columns that are not yet
rounded take the values with the least error, given those that are (OBQ: Frantar & Alistarh 2022, arXiv:2208.11580).
With the upper Cholesky factor U of H⁻¹, that is one product for each column (GPTQ: Frantar et al. 2022,
arXiv:2210.17323, algorithm 1):

    W_k ← W_k − (W_j − Q_j) / U_jj · U_jk,    k > j

Scales are those of `amc.operators.quantisation`. A channel's largest weight stays at the end of the range, so that its
scale can be recovered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.operators.quantisation import best_scales, largest_integer, quantised

_DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: GPTQ's."""
_BLOCK = 32  # columns whose errors are passed on together


@dataclass(frozen=True)
class RoundedWeights:
    """Rounds weights to so many bits. Equal ones do the same.

    >>> RoundedWeights(4)(torch.tensor([[0.6, 7.0]]), torch.eye(2))
    tensor([[1., 7.]])
    """

    bits: int

    def __call__(self, weight: Tensor, moments: Tensor) -> Tensor:
        """The rounded weights ``[C, D]``, for second moments ``[D, D]`` of the inputs."""
        return rounded(weight, moments, self.bits)


def rounded(weight: Tensor, moments: Tensor, bits: int) -> Tensor:
    """Weights ``[C, D]`` rounded to ``bits`` bits with a small error for inputs of these second moments ``[D, D]``."""
    order = moments.diagonal().argsort(descending=True)
    factor = _factor(moments[order][:, order])
    if factor is None:
        return quantised(weight, bits)
    most, scale = largest_integer(bits), best_scales(weight, bits)
    left = weight[:, order].clone()
    largest = left.abs().argmax(1)
    ends = most * left.gather(1, largest[:, None]).sign().squeeze(1)
    found = torch.empty_like(left)
    width = left.shape[1]
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        errors = torch.empty_like(left[:, start:end])
        for j in range(start, end):
            integers = (left[:, j] / scale[:, 0]).round_().clamp_(-most, most)
            found[:, j] = torch.where(largest == j, ends, integers) * scale[:, 0]
            errors[:, j - start] = (left[:, j] - found[:, j]) / factor[j, j]
            left[:, j:end].addr_(errors[:, j - start], factor[j, j:end], alpha=-1)
        left[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    result = torch.empty_like(found)
    result[:, order] = found
    return result


def _factor(moments: Tensor) -> Tensor | None:
    """The upper Cholesky factor of the inverse; None if there is none."""
    h = moments.double()
    h.diagonal().add_(_DAMPING * h.diagonal().mean().clamp_min(1e-30))
    lower, bad = torch.linalg.cholesky_ex(h)
    if int(bad):
        return None
    upper, bad = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(bad) else upper.to(moments.dtype)
