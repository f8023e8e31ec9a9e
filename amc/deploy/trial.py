"""Try a program on fake tensors, which have no content, before it gets real ones.

This finds shapes that do not match, arguments that an operator refuses, and huge tensors, without calling a kernel.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves

from amc.errors import AmcError, BundleError, first_line
from amc.task.nested import Signature

MOST_BYTES = 4 << 30
"""Most bytes of one tensor, for one sample."""


def try_program(program: fx.GraphModule, inputs: Signature) -> None:
    """Run a program on one fake sample of these shapes. Raises BundleError."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    try:
        with warnings.catch_warnings(), mode, torch.no_grad():
            warnings.simplefilter("ignore")
            made = [torch.zeros(1, *sizes, dtype=getattr(torch, word)) for sizes, word in inputs.tensors.values()]
            _Trial(program, mode).run(*made)
    except AmcError:
        raise
    except Exception as error:
        raise BundleError(f"the program does not run on inputs of its shapes: {first_line(error)[:200]}") from error


class _Trial(fx.Interpreter):
    """Runs a program on fake tensors, and checks the result of every step."""

    def __init__(self, program: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(program)
        self._mode = mode
        self._fakes: dict[str, Tensor] = {}

    def fetch_attr(self, target: str) -> Any:
        if target not in self._fakes:
            self._fakes[target] = self._mode.from_tensor(super().fetch_attr(target), static_shapes=True)
        return self._fakes[target]

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and all(type(size) is int for size in leaf.shape):
                size = leaf.numel() * leaf.element_size()
                if size > MOST_BYTES:
                    raise BundleError(f"the program makes a tensor of {size / 2**30:.0f} GiB by {n.target}.")
        return found
