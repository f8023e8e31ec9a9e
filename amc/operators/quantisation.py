"""Weights of few bits: symmetric integers, with one scale per output channel.

=====  ==================================================================
w      a channel's weights
b      bits
q      integers from -m to m, m = 2^(b-1) - 1
s      the channel's scale
=====  ==================================================================

w ≈ s · q with q = round(w / s), cut off at ±m. The scale is f · max(abs(w)) / m; of a few factors f of at most 1, the
one with the least squared error is taken. Since f is at most 1, the largest integer of a channel is always m. So scale
and integers can be recovered from the quantised weights themselves, even after another factor per channel, such as that
of a folded BatchNorm: `recovered`. Scales are rounded to 16 significant bits. Then s · q is exact in float32, and
quantising a second time changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTORS = tuple(1 - 0.05 * k for k in range(11))
"""Factors of the largest weight, from no clipping to half of the range."""
_KEPT_BITS = 16
_ON_GRID = 1e-2
"""Largest distance from an integer of a weight that is recovered, in steps."""


def largest_integer(bits: int) -> int:
    """m for this many bits.

    >>> largest_integer(8), largest_integer(4)
    (127, 7)
    """
    return int(2 ** (bits - 1) - 1)


def quantised(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The weights ``[...]`` rounded to ``bits`` bits; ``axis`` is that of the output channels.

    >>> quantised(torch.tensor([[0.9, 7.0, -2.4]]), 4)
    tensor([[ 1.,  7., -2.]])
    """
    rows = weight.detach().movedim(axis, 0).flatten(1)
    scale = best_scales(rows, bits)
    return _unflattened(_integers(rows, scale, bits).mul_(scale), weight, axis)


def best_scales(rows: Tensor, bits: int) -> Tensor:
    """The scale ``[C, 1]`` of every row of ``rows [C, D]`` with the least squared error."""
    whole = rows.abs().amax(1, keepdim=True) / largest_integer(bits)
    best, least = torch.ones_like(whole), torch.full_like(whole, torch.inf)
    for factor in FACTORS:
        scale = _short(factor * whole)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        error = _integers(rows, scale, bits).mul_(scale).sub_(rows).square_().sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def recovered(weight: Tensor, bits: int, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Integers ``[...]`` and scales ``[C]`` of weights that were `quantised`, each channel times any factor since.

    Raises ValueError if they were not.
    """
    rows = weight.detach().movedim(axis, 0).flatten(1)
    scale = rows.abs().amax(1, keepdim=True) / largest_integer(bits)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    steps = rows / scale
    integers = steps.round()
    if rows.numel() and not float((steps - integers).abs().max()) <= _ON_GRID:
        raise ValueError(f"the weights are not of {bits} bits")
    return _unflattened(integers, weight, axis), scale.squeeze(1)


def _integers(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    most = largest_integer(bits)
    return (rows / scale).round_().clamp_(-most, most)


def _unflattened(rows: Tensor, like: Tensor, axis: int) -> Tensor:
    first = like.movedim(axis, 0)
    return rows.reshape(first.shape).movedim(0, axis).contiguous()


def _short(scale: Tensor) -> Tensor:
    """Float32 numbers rounded to 16 significant bits."""
    mantissa, exponent = torch.frexp(scale.float())
    return torch.ldexp((mantissa * 2.0**_KEPT_BITS).round(), exponent - _KEPT_BITS)
