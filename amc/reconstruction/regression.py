"""One layer's regression on what reaches it: the mathematics of `amc.reconstruction.sequential`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from amc.reconstruction.least_squares import RIDGE
from amc.reconstruction.residuals import Activation

_LEAST_SCALE = 1e-2  # of a BatchNorm, as a share of its largest: channels below it correct nothing
_BLOCK = 64  # columns at once of a symmetric product
_LEAST_VARIANCE = 0.04  # of a mean's square, from which float32 sums of squares tell it

Norm = tuple[Any, Tensor]
"""A BatchNorm and the mean ``[C]`` that it subtracted in the original."""
Solution = tuple[Tensor, Tensor]
"""Weights ``[C, D]`` and constant ``[C]``."""


def inverse_scale(module: Any) -> Tensor:
    """The factor ``[C]`` from a difference after a BatchNorm to one before it; 0 for channels that it nearly zeroes.

    >>> norm = torch.nn.BatchNorm2d(2, eps=0)
    >>> _ = norm.weight.data.copy_(torch.tensor([4.0, 0.0]))
    >>> inverse_scale(norm).tolist()
    [0.25, 0.0]
    """
    deviation = (module.running_var + module.eps).sqrt()
    scale = (torch.ones_like(deviation) if module.weight is None else module.weight) / deviation
    used = scale.abs() > _LEAST_SCALE * scale.abs().max()
    return torch.where(used, 1 / torch.where(used, scale, 1.0), 0.0)


@dataclass(frozen=True, eq=False)
class Matching:
    """The activation after a layer, and its output in the original; see `amc.reconstruction.sequential`."""

    rounds: int
    activation: Activation
    wanted: Tensor
    """Of the activation in the original ``[n, C]``."""
    scale: Tensor
    """Of the norm between them ``[C]``, 0 for channels that it scales to nearly 0, and its inverse, 0 there too."""
    inverse: Tensor
    shift: Tensor

    def missing(self, outputs: Tensor) -> Tensor:
        """The change of the layer's ``outputs [n, C]`` that makes up for the difference after the activation."""
        behind = self.activation(torch.addcmul(self.shift, self.scale, outputs))
        return (self.wanted - behind).mul_(self.inverse)


def matching_of(activation: Activation, target: Tensor, norm: Norm | None, rounds: int) -> Matching:
    """For an activation behind a norm, where ``target [n, C]`` is wanted of the layer."""
    inverse = target.new_ones(target.shape[1]) if norm is None else inverse_scale(norm[0])
    scale, shift = torch.where(inverse == 0, 0.0, 1 / inverse), torch.zeros_like(inverse)
    if norm is not None:
        shift = (0.0 if norm[0].bias is None else norm[0].bias) - norm[1] * scale
    return Matching(rounds, activation, activation(scale * target + shift), scale, inverse, shift)


def regression(
    x: Tensor, y: Tensor, before: Tensor, has_constant: bool, matching: Matching | None = None
) -> Solution | None:
    """Weights and constant that make ``y [n, C]`` of ``x [n, D]``, pulled towards the weights ``before [C, D]``.

    Where ``x`` is bfloat16, products with it are exact, and the changes of the rounds are rounded to bfloat16.

    >>> x = torch.arange(4.0)[:, None]
    >>> weight, constant = regression(x, 2 * x + 1, before=torch.zeros(1, 1), has_constant=True)
    >>> weight.round(decimals=1), constant.round(decimals=1)
    (tensor([[2.]]), tensor([1.]))
    """
    rows, x = x, x.to(before.dtype)
    x_mean = x.mean(0)
    middle = x_mean if has_constant else torch.zeros_like(x_mean)
    c = _bfloat16_covariance(x, x_mean, has_constant) if rows.dtype == torch.bfloat16 else None
    if c is None:
        if has_constant:
            x, middle = x - x_mean, torch.zeros_like(x_mean)
        c, rows = second_moments(x), x
    ridge = RIDGE * c.diagonal().mean().clamp_min(torch.finfo(c.dtype).tiny)
    c = c.double()
    c.diagonal().add_(ridge)
    factor, bad = torch.linalg.cholesky_ex(c)
    if int(bad):
        return None
    y_mean = y.mean(0) if has_constant else y.new_zeros(y.shape[1])
    weight = _solve(factor, (y - y_mean).T @ x / len(x) + ridge * before)
    if matching is not None:
        outputs = F.linear(x, weight, y_mean - weight @ middle)
        for _ in range(matching.rounds):
            missing = matching.missing(outputs)
            mean = missing.mean(0) if has_constant else torch.zeros_like(y_mean)
            products = (missing - mean).to(rows.dtype).T @ rows
            change = _solve(factor, products.to(before.dtype) / len(x) - ridge * (weight - before))
            weight, y_mean = weight + change, y_mean + mean
            outputs += F.linear(rows, change.to(rows.dtype)) + (mean - change @ middle)
    return weight, y_mean - weight @ x_mean


def _solve(factor: Tensor, products: Tensor) -> Tensor:
    """``products [C, D]`` times the inverse of the matrix with this Cholesky factor, which is float64."""
    return torch.cholesky_solve(products.T.double(), factor).T.to(products.dtype).contiguous()


def second_moments(x: Tensor) -> Tensor:
    """``xᵀx / n`` of ``[n, D]``, of which only the lower triangle is computed: half of the work."""
    size = x.shape[1]
    found = x.new_zeros(size, size)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        found[start:end, :end] = x[:, start:end].T @ x[:, :end]
    return found.div_(len(x))


def _bfloat16_covariance(x: Tensor, mean: Tensor, centred: bool) -> Tensor | None:
    """`second_moments`, less the mean's share if ``centred``. None where the mean would leave nothing but round-off."""
    with bfloat16_products():
        c = second_moments(x)
    if not centred:
        return c
    c.addr_(mean, mean, alpha=-1)
    return None if bool((c.diagonal() < _LEAST_VARIANCE * mean**2).any()) else c


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """float32 matrices are multiplied as bfloat16 and summed as float32, where processor and torch can."""
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if setting is None:  # torch before 2.9
        yield
        return
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
