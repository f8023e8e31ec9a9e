"""Rows of a layer: what it multiplies with its weights at one position of its output.

A convolution at one position is a linear layer of D = input channels × kernel taps inputs, ordered as
``weight.flatten(1)``. Rows are read at a few random positions of every sample, without unfolding whole feature maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def row_length(module: nn.Module | None) -> int:
    """Elements D of a row; 0 for a module without weights.

    >>> row_length(nn.Conv2d(3, 8, 3))
    27
    """
    weight = getattr(module, "weight", None)
    return weight[0].numel() if isinstance(weight, Tensor) else 0


def elements(positions: Tensor, taps: int) -> Tensor:
    """The elements of a row that belong to the given input positions: all taps of each.

    >>> elements(torch.tensor([0, 2]), taps=3).tolist()
    [0, 1, 2, 6, 7, 8]
    """
    return (positions[:, None] * taps + torch.arange(taps, device=positions.device)).flatten()


def rows_of(module: nn.Module, x: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """Rows ``[N · P, D]`` that the layer multiplies with its weights, at P random positions of each image."""
    return rows_at(module, x, choose_positions(module, x, per_image, generator))


def choose_positions(module: nn.Module, x: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
    """Random positions ``[N, P]`` of the layer's output for each image of ``x``, flattened; all where there are few."""
    size = x[0].numel() // x.shape[-1] if isinstance(module, nn.Linear) else prod(_output_size(module, x))
    if size <= per_image:
        return torch.arange(size).expand(len(x), -1)
    return torch.randint(size, (len(x), per_image), generator=generator)


@dataclass(frozen=True, eq=False)
class Taps:
    """Where a convolution's rows lie in its input: pixels ``[N · P · k]`` of all images, and those that are padding."""

    size: torch.Size
    pixels: Tensor
    missing: Tensor


def find_taps(module: nn.Module, x: Tensor, chosen: Tensor) -> Taps:
    """The taps of the layer's kernel around the output positions ``chosen [N, P]``."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    width = _output_size(module, x)[1]
    (top, left), (height, inner) = _padding(module), _plane(module, x)
    kernel, stride, dilation = _geometry(module)
    chosen = chosen[..., None, None].to(x.device)
    rows = chosen // width * stride[0] + dilation[0] * torch.arange(kernel[0], device=x.device)[:, None] - top
    columns = chosen % width * stride[1] + dilation[1] * torch.arange(kernel[1], device=x.device) - left
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    at = (image * height + rows.clamp(0, height - 1)) * inner + columns.clamp(0, inner - 1)  # [N, P, kh, kw]
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= inner)
    kind = torch.int32 if len(x) * height * inner < 2**31 else torch.int64
    return Taps(x.shape[2:], at.flatten().to(kind), outside.flatten().nonzero()[:, 0])


def rows_at(module: nn.Module, x: Tensor, chosen: Tensor, taps: Taps | None = None) -> Tensor:
    """Rows ``[N · P, D]`` that the layer multiplies with its weights at the positions ``chosen [N, P]``.

    ``taps`` are those of an input of this shape, if known.
    """
    if isinstance(module, nn.Linear):
        return outputs_at(module, x, chosen)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    taps = taps if taps is not None and taps.size == x.shape[2:] else find_taps(module, x, chosen)
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    pixels = x.flatten(2).transpose(1, 2).flatten(0, 1).index_select(0, taps.pixels)
    pixels.index_fill_(0, taps.missing, 0)  # cheaper than to pad whole maps of which few positions are read
    return pixels.reshape(-1, module.weight[0, 0].numel(), x.shape[1]).transpose(1, 2).flatten(1)


def outputs_at(module: nn.Module, y: Tensor, chosen: Tensor) -> Tensor:
    """The layer's outputs, or a tensor of their shape, at the positions ``chosen [N, P]``: ``[N · P, C]``."""
    y = y.reshape(len(y), -1, y.shape[-1]) if isinstance(module, nn.Linear) else y.flatten(2).transpose(1, 2)
    image = torch.arange(len(y), device=y.device)[:, None]
    return y[image, chosen.to(y.device)].flatten(0, 1)


def outputs_fit(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether ``y [N, C, ...]`` has as many positions as the convolution's output for the input ``x``."""
    return prod(y.shape[2:]) == prod(_output_size(module, x))


def _padding(module: nn.Conv1d | nn.Conv2d) -> tuple[int, int]:
    """Zeros above and on the left; 0 where the input is padded already, in another mode."""
    if module.padding_mode != "zeros":
        return 0, 0
    sides = module._reversed_padding_repeated_twice
    return (0 if isinstance(module, nn.Conv1d) else sides[2]), sides[0]


def _plane(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Height and width of the input that the kernel moves over, with padding of other modes."""
    height, width = (1, x.shape[2]) if isinstance(module, nn.Conv1d) else x.shape[2:]
    if module.padding_mode == "zeros":
        return height, width
    sides = module._reversed_padding_repeated_twice
    return height + (0 if isinstance(module, nn.Conv1d) else sides[2] + sides[3]), width + sides[0] + sides[1]


def _geometry(module: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride and dilation, each for height and width."""
    flat = (1,) if isinstance(module, nn.Conv1d) else ()
    return (*flat, *module.kernel_size), (*flat, *module.stride), (*flat, *module.dilation)


def _output_size(module: nn.Module, x: Tensor) -> tuple[int, int]:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    kernel, stride, dilation = _geometry(module)
    pads = list(module._reversed_padding_repeated_twice)
    padded = [size + before + after for size, before, after in zip(x.shape[:1:-1], pads[::2], pads[1::2], strict=True)]
    sizes = [1, *padded[::-1]][-2:] if isinstance(module, nn.Conv1d) else padded[::-1]
    height, width = (
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    )
    return height, width
