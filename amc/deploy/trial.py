"""A program is tried on tensors without content before it is given real ones.

Shapes that do not fit, arguments that an operator refuses and tensors of many gigabytes are found in that way without
a kernel being called.
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
"""Of one tensor, for one sample."""


def try_program(program: fx.GraphModule, inputs: Signature) -> None:
    """Run the program on one sample of those shapes, without computing anything. Raises BundleError."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    try:
        with warnings.catch_warnings(), mode, torch.no_grad():
            warnings.simplefilter("ignore")
            made = [torch.zeros(1, *sizes, dtype=getattr(torch, word)) for sizes, word in inputs.tensors.values()]
            _Trial(program, mode).run(*made)
    except AmcError:
        raise
    except Exception as error:
        raise BundleError(f"the program does not run on its own inputs: {first_line(error)[:200]}") from error


class _Trial(fx.Interpreter):
    """Runs a program on fake tensors, and looks at what every step gives."""

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
