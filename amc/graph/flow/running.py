"""Which module of a network is running, and to which parameters and buffers a tensor belongs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class RunningModule:
    """The innermost module that is running at any time of a pass.

    >>> running = RunningModule(model := nn.Sequential(nn.Identity()))
    >>> hook = model[0].register_forward_hook(lambda *_: print(repr(running.name)))
    >>> with running.watched():
    ...     _ = model(1)
    '0'
    >>> running.name
    ''
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = [""]

    @property
    def name(self) -> str:
        """Its name; empty for the network itself."""
        return self._stack[-1]

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self._model.get_submodule(self.name)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Passes within this context are watched."""
        handles = []
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._stack.append(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, *_: Any) -> None:
        self._stack.pop()


class OwnTensors:
    """The parameters and buffers of a network, found by the memory that a tensor shows.

    >>> own = OwnTensors(model := nn.Linear(2, 3))
    >>> own.find(model.weight.T)[0]
    'weight'
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._by_memory: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.numel():
                self._by_memory.setdefault(_memory(tensor), (name, tensor))

    def find(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """Name and whole of the parameter or buffer that a tensor is, or shows a part of."""
        return self._by_memory.get(_memory(tensor))

    def holder(self, name: str) -> nn.Module:
        """The module that holds a parameter or buffer."""
        return self._model.get_submodule(name.rpartition(".")[0])


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
