"""What a network does on one example: which layers run, their MACs, and which activations live when.

Counted at the level of ATen operators, so that functional calls, attention and reused modules are seen too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc.graph.attention import without_fast_path
from amc.graph.macs import operator_macs, operator_name
from amc.task import nested
from amc.task.nested import Nested

# Element-wise operators that a runtime does in place or fuses: they need no memory of their own when their
# input is not used again. BatchNorm is folded into the convolution before it.
_IN_PLACE = frozenset(
    f"aten.{name}"
    for name in (
        "relu", "hardtanh", "clamp", "sigmoid", "tanh", "silu", "gelu", "elu", "hardswish", "hardsigmoid", "mish",
        "leaky_relu", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "dropout", "neg",
    )
)  # fmt: skip


@dataclass(frozen=True)
class LayerCall:
    """One layer as it ran: shapes without the batch."""

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    elements: int
    """Elements of one output for one sample; a network may fold other axes into the layer's batch."""
    calls: int


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass at batch 1.

    ``sizes[t]`` is the number of elements of activation t, ``live[o, t]`` whether it is in memory while
    operator o runs. ``macs`` counts convolutions, linear layers and matrix products (attention, recurrent layers
    and distances included; see `amc.graph.macs`).
    """

    layers: dict[str, LayerCall]
    macs: int
    sizes: NDArray[np.int64]
    live: NDArray[np.bool_]
    outputs: tuple[Tensor, ...]
    by_operator: Mapping[str, int] = field(default_factory=dict)
    """MACs by the name of the operator."""
    uncounted: tuple[str, ...] = ()
    """Operators whose MACs are unknown: ``macs`` lacks them."""
    reads_values: bool = False
    """Whether Python reads values of activations, or the sizes of tensors depend on values (`x[x > 0]`, `nonzero`)."""

    @property
    def peak(self) -> int:
        """Most bytes of activations that are in memory at the same time, in float32 at batch 1."""
        return 4 * int((self.live @ self.sizes).max())


class Watch(Protocol):
    """Receives every operator after it has run, every activation when it first appears, and the outputs at the end."""

    def step(self, func: Any, args: Any, kwargs: Any, out: Any) -> None: ...
    def made(self, index: int, tensor: Tensor) -> None: ...
    def outputs(self, tensors: list[Tensor]) -> None: ...


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, constants: list[Tensor], watch: Watch | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch
        self.macs: Counter[str] = Counter()
        self.uncounted: dict[str, None] = {}
        self.reads_values = False
        self.steps: list[tuple[list[int], list[int], bool]] = []
        self.sizes: list[int] = []
        self._ids: dict[int, int] = {}
        self._constant = {c.untyped_storage()._cdata for c in constants}
        self._alive: list[Tensor] = []  # the address of a storage must not be reused while recording

    def activation(self, tensor: Tensor) -> int | None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._constant:
            return None
        if storage._cdata not in self._ids:
            self._ids[storage._cdata] = len(self.sizes)
            self.sizes.append(storage.nbytes() // tensor.element_size())
            self._alive.append(tensor)
            if self._watch:
                self._watch.made(self._ids[storage._cdata], tensor)
        return self._ids[storage._cdata]

    def _keep_constant(self, args: Any, kwargs: Any, out: Any) -> None:
        """A tensor that is computed from weights alone, as in weight normalisation, is a weight and no activation."""
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.numel()]
        if read and all(t.untyped_storage()._cdata in self._constant for t in read):
            made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            self._alive += made
            self._constant |= {t.untyped_storage()._cdata for t in made}

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        macs, name = operator_macs(func, args, kwargs, out), operator_name(func)
        if macs is None:
            self.uncounted[name] = None
        elif macs:
            self.macs[name] += macs
        if name == "_local_scalar_dense" and args[0].untyped_storage()._cdata not in self._constant:
            self.reads_values = True
        if torch.Tag.dynamic_output_shape in func.tags:
            self.reads_values = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._count(func, args, kwargs or {}, out)
        if self._watch:
            self._watch.step(func, args, kwargs or {}, out)
        known = len(self.sizes)
        self._keep_constant(args, kwargs, out)
        reads = [
            i for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and (i := self.activation(t)) is not None
        ]
        writes = [
            i for t in tree_leaves(out) if isinstance(t, Tensor) and t.numel() and (i := self.activation(t)) is not None
        ]
        made = [i for i in writes if i >= known and i not in reads]
        self.steps.append((reads, made, str(func.overloadpacket) in _IN_PLACE))
        return out


def unprovable(traced: Trace) -> str | None:
    """Why a limit on MACs cannot be proved for a network; None where it can.

    >>> class Spectrum(nn.Module):
    ...     def forward(self, x):
    ...         return torch.fft.rfft(x).abs()
    >>> unprovable(trace(Spectrum().eval(), torch.ones(1, 8)))
    'a limit on MACs cannot be proved: those of fft_r2c are not known, and not counted'
    """
    if not traced.uncounted:
        return None
    names = ", ".join(name.lstrip("_") for name in traced.uncounted)
    return f"a limit on MACs cannot be proved: those of {names} are not known, and not counted"


def trace(model: nn.Module, example: Nested, watch: Watch | None = None) -> Trace:
    """Run ``model`` (evaluation mode) on one example ``[1, ...]`` and record it.

    >>> found = trace(nn.Conv2d(3, 8, 3).eval(), torch.ones(1, 3, 8, 8))
    >>> found.macs == 8 * 3 * 9 * 6 * 6
    True
    >>> found.peak == 4 * (3 * 8 * 8 + 8 * 6 * 6)
    True
    """
    constants = [*model.parameters(), *model.buffers()]
    recorder = _Recorder([c for c in constants if c.numel()], watch)
    with torch.no_grad(), without_fast_path(), _watching(model) as layers, recorder:
        sources = [i for leaf in nested.leaves(example) if (i := recorder.activation(leaf)) is not None]
        outputs = [t for t in tree_leaves(nested.call(model, example)) if isinstance(t, Tensor)]
    if watch:
        watch.outputs(outputs)
    ends = [i for t in outputs if (i := recorder.activation(t)) is not None]
    live = _liveness(recorder, sources, ends)
    sizes = np.array(recorder.sizes, np.int64)
    macs, uncounted = dict(recorder.macs), tuple(recorder.uncounted)
    return Trace(layers, sum(macs.values()), sizes, live, tuple(outputs), macs, uncounted, recorder.reads_values)


def _liveness(recorder: _Recorder, sources: list[int], ends: list[int]) -> NDArray[np.bool_]:
    first = np.zeros(len(recorder.sizes), np.int64)
    last = np.zeros(len(recorder.sizes), np.int64)
    for step, (reads, made, _) in enumerate(recorder.steps):
        last[[*reads, *made]] = step
        first[made] = step
    last[ends] = len(recorder.steps)
    first[sources] = 0
    for step, (reads, made, in_place) in enumerate(recorder.steps):
        if in_place and reads and made and last[reads[0]] == step:
            last[reads[0]] = step - 1  # its memory is that of the result
    steps = np.arange(max(1, len(recorder.steps)))[:, None]
    alive: NDArray[np.bool_] = (first <= steps) & (steps <= last)
    return alive


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, LayerCall]]:
    """Collects shapes and call counts of the modules that hold parameters themselves."""
    layers: dict[str, LayerCall] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, inputs: Any, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                calls = layers[name].calls + 1 if name in layers else 1
                shapes = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])
                layers[name] = LayerCall(name, *shapes, output.numel(), calls)

        return record

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if next((t for own in (module.parameters, module.buffers) for t in own(recurse=False)), None) is not None
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
