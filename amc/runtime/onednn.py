"""A fault of oneDNN that pruned networks meet: gradients of narrow strided 1×1 convolutions corrupt memory.

With channels last, and fewer input channels than a vector register holds, oneDNN (3.12, in torch 2.14) writes past a
buffer when it computes the gradient of the weights: the process crashes, hangs, or goes on with wrong gradients
(https://github.com/uxlfoundation/oneDNN/issues/6035). Shortcuts of residual networks are such layers. What they compute
is the same if the pixels that they read are taken first, and the convolution has stride 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

_LANES = 16  # float32 numbers in the widest vector register
_Size = tuple[int, ...]


class SafeGradients:
    """Computes the affected layers of a model in another way, for gradients of its weights.

    Only the forward pass need be in the context.

    >>> layer = nn.Conv2d(4, 8, 1, stride=2)
    >>> with SafeGradients(layer).active():
    ...     layer.stride, layer(torch.zeros(1, 4, 8, 8)).shape
    ((1, 1), torch.Size([1, 8, 4, 4]))
    >>> layer.stride
    (2, 2)
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _affected(module)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model computes the same with layers of stride 1 in this context."""
        strides = [module.stride for module in self._modules]
        hooks = [
            module.register_forward_pre_hook(partial(_take_pixels, stride), with_kwargs=True)
            for module, stride in zip(self._modules, strides, strict=True)
        ]
        try:
            for module in self._modules:
                module.stride = (1, 1)
            yield
        finally:
            for hook, module, stride in zip(hooks, self._modules, strides, strict=True):
                hook.remove()
                module.stride = stride


def _affected(module: nn.Conv2d) -> bool:
    narrow = module.groups == 1 and module.in_channels < _LANES
    padded = module.padding != "valid" and any(p != 0 for p in module.padding)
    return narrow and module.kernel_size == (1, 1) and module.stride != (1, 1) and not padded


def _take_pixels(
    stride: _Size, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook: the layer gets only the pixels that it would read with this stride."""
    if args:
        return (_taken(args[0], stride), *args[1:]), dict(named)
    return args, {**named, "input": _taken(named["input"], stride)}


def _taken(x: torch.Tensor, stride: _Size) -> torch.Tensor:
    return x[..., :: stride[0], :: stride[1]]
