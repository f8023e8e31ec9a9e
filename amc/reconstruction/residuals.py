"""Uses of the outputs of layers: residual additions, and activations that are their only readers.

Both are found by recording the operators of one forward pass; only the network's own operators count, not those of
hooks. A later pass, of another batch size or memory layout or of a cut network, may run other operators that only move
elements. So a stream is found again by the layer that ran last before it, and by its operator among those of its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc.graph.attention import without_fast_path
from amc.graph.channels import Layer
from amc.task import nested
from amc.task.nested import Nested

Stream = tuple[str, str, int]
"""The operator whose output is the stream: the layer that began last before it ('' for none), the operator's name, and
which of that name it is since then."""
Activation = Callable[[Tensor], Tensor]
_aten = torch.ops.aten
_CASTS = (_aten._to_copy,)
"""Operators that do not count, since autocast adds them."""
_ACTIVATIONS = {
    _aten.relu: _aten.relu_,
    _aten.hardtanh: _aten.hardtanh_,
    _aten.leaky_relu: _aten.leaky_relu_,
    _aten.sigmoid: _aten.sigmoid_,
    _aten.hardsigmoid: _aten.hardsigmoid_,
    _aten.tanh: _aten.tanh_,
}
"""Element-wise operators, each with its in-place form."""
_OUT_OF_PLACE = {kind: plain for plain, inplace in _ACTIVATIONS.items() for kind in (plain, inplace)}


@dataclass(frozen=True)
class OutputUses:
    """Uses of the outputs of layers, after their norms, by the layer's name."""

    streams: Mapping[str, Stream]
    """Residual additions: the stream that they are added to, where it was computed before the layer ran."""
    activations: Mapping[str, Activation]
    """Their only reader, where that is an activation that never decreases and has no slope above 1."""


def find_output_uses(model: nn.Module, layers: Mapping[str, Layer], example: Nested) -> OutputUses:
    """The uses of the outputs of ``layers`` in a forward pass of ``model``.

    >>> from amc.graph.channels import ModuleKind
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    >>> uses = find_output_uses(model, {"0": Layer("0", ModuleKind.LINEAR, None)}, torch.ones(1, 2))
    >>> list(uses.activations), list(uses.streams)
    (['0'], [])
    """
    finder = _Finder()
    handles = []
    for name, layer in layers.items():
        module, last = model.get_submodule(name), model.get_submodule(layer.norm or name)
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: finder.begin(name)))
        handles.append(last.register_forward_hook(lambda m, i, out, name=name: finder.end(name, out)))
    try:
        with torch.no_grad(), without_fast_path(), finder:
            outputs = nested.call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return finder.found(outputs)


class StreamWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the residual streams of a pass, from the operators that compute them until they are released."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place = _Place()
        self._done: set[str] = set()
        self.found: dict[str, Tensor] = {}
        self._wanted: dict[Stream, list[str]] = {}
        for layer, stream in streams.items():
            self._wanted.setdefault(stream, []).append(layer)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket not in _CASTS:
            for layer in self._wanted.get(self._place.after(str(func)), ()):
                if layer not in self._done:
                    self.found[layer] = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
        return out

    def begin(self, layer: str) -> None:
        """A layer begins to run."""
        self._place.begin(layer)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context operators are not recorded, and run faster."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]

    def forget(self, layer: str) -> None:
        """Release the layer's stream, for good: it is not kept again when the layer runs again."""
        self._done.add(layer)
        self.found.pop(layer, None)


class _Place:
    """Where in a pass an operator is, see `Stream`."""

    def __init__(self) -> None:
        self._layer, self._since = "", Counter[str]()

    def begin(self, layer: str) -> None:
        self._layer, self._since = layer, Counter()

    def after(self, operator: str) -> Stream:
        self._since[operator] += 1
        return self._layer, operator, self._since[operator]


class _Finder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._streams: dict[str, Stream] = {}
        self._activations: dict[str, Activation] = {}
        self._readers: Counter[str] = Counter()
        self._place = _Place()
        self._written: list[Stream] = []
        self._count = 0
        self._writer: dict[int, int] = {}
        self._alive: list[Any] = []  # an id() must not be reused while recording
        self._begun: dict[str, int] = {}
        self._made: dict[int, str] = {}

    def begin(self, layer: str) -> None:
        self._begun[layer] = self._count
        self._place.begin(layer)

    def end(self, layer: str, output: Tensor) -> None:
        self._made[self._writer.get(id(output), -1)] = layer

    def found(self, outputs: Any) -> OutputUses:
        """The uses, when ``outputs`` are the network's."""
        self._read(outputs)
        fit = {
            x: own for x, own in self._activations.items() if self._readers[x] == 1 and _is_monotone_contraction(own)
        }
        return OutputUses(self._streams, fit)

    def _maker(self, tensor: Any) -> str | None:
        """The layer whose output this is."""
        return self._made.get(self._writer.get(id(tensor), -2))

    def _read(self, tensors: Any) -> None:
        self._readers.update(filter(None, map(self._maker, tree_leaves(tensors))))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._read((args, kwargs))
        if func.overloadpacket in (_aten.add, _aten.add_):
            for mine, other in (args[:2], args[1::-1]):
                layer, writer = self._maker(mine), self._writer.get(id(other), -1)
                if layer is not None and 0 <= writer < self._begun[layer] and args[0].shape == args[1].shape:
                    self._streams[layer] = self._written[writer]
        elif (plain := _OUT_OF_PLACE.get(func.overloadpacket)) and (layer := self._maker(args[0])) is not None:
            self._activations[layer] = _bound(plain, args[1:], kwargs)
        out = func(*args, **kwargs)
        if func.overloadpacket in _CASTS:
            return out
        self._written.append(self._place.after(str(func)))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self._writer[id(tensor)] = self._count
        self._count += 1
        return out


def _bound(plain: Any, settings: tuple[Any, ...], named: Mapping[str, Any]) -> Activation:
    return lambda x: plain(x, *settings, **named)


def _is_monotone_contraction(activation: Activation) -> bool:
    """Whether it never decreases and has no slope above 1; for leaky ReLUs that depends on the setting."""
    x = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    steps = activation(x).diff() / x.diff()
    return bool(((steps >= 0) & (steps <= 1 + 1e-3)).all())
