"""Reconstruction that is aware of drift: every layer re-solved on what really reaches it in the pruned network.

`amc.reconstruction.least_squares` fits each layer to the original's inputs, so a solution depends on widths
alone and is kept. What it
cannot see is that the inputs have drifted: every layer before has an error of its own. Here one forward pass over
calibration samples re-solves layer after layer *while it runs*: when the pass reaches a layer, its inputs come from
the finished prefix. Notation as in `amc.reconstruction.least_squares`, for one layer:

=====  =========================================================================================
x̃      its inputs in the pruned network
y      its outputs in the original
d      where its output is added to a stream, what the stream lacks: original's minus pruned one's
W'     argmin over V of E‖y + d/s − V x̃ − const‖² + λ‖V − W₀‖², W₀ the solution without drift,
       s the scale of the BatchNorm between the layer and the stream
=====  =========================================================================================

Regression on the pruned network's own features is He et al.'s (arXiv:1707.06168, section 3.2); the correction by the
stream is theirs for residual branches ("multi-branch enhancement"), here for every addition.

Where an activation φ alone reads a layer, what φ does not tell apart need not be met: anything below a ReLU's bend will
do. There W' minimises the matching loss, E Σ ∫ φ(s) − φ(y) ds from y to V x̃ + const (Auer, Herbster & Warmuth, NIPS
1995), convex where φ never falls. No slope is above 1, so a regression on V x̃ + φ(y) − φ(V x̃) always brings it down.
Some rounds of these follow the first regression, with the same factor, for the changes alone. Zhang et al.
(arXiv:1505.06798) fit what ReLUs leave, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from amc.graph.attention import without_fast_path
from amc.graph.build import Graph
from amc.graph.channels import Kept, Layer
from amc.graph.surgery import silenced, twin
from amc.reconstruction.fold import Folder
from amc.reconstruction.least_squares import (
    RIDGE,
    Taps,
    choose_positions,
    find_taps,
    outputs_at,
    outputs_fit,
    rows_at,
    solvable,
)
from amc.reconstruction.residuals import Activation, Watch, find_joins
from amc.runtime.memory import Memory
from amc.task import Task, nested
from amc.task.data import sample

_ROOM = 256 << 20  # bytes of solutions that are kept
_LEAST_SCALE = 1e-2  # of a BatchNorm, as a share of its largest: what is nearly silenced corrects nothing
_BLOCK = 64  # columns at once of a symmetric product
_LEAST_VARIANCE = 0.04  # of a mean's square, from which float32 sums of squares tell it

_Norm = tuple[Any, Tensor]
_Solution = tuple[Tensor, Tensor]
"""Weights ``[C, D]`` and constant ``[C]``."""
Visit = Callable[[Layer, Any, Tensor], None]


@dataclass(frozen=True)
class Effort:
    """What re-solving may take."""

    samples: int
    rows: int
    """Of all samples, that a layer is fitted on."""
    rounds: int
    """Regressions after the first where an activation follows."""


FULL = Effort(4096, 24576, 4)
FAST = Effort(384, 6144, 2)
"""In a search: it ranks policies nearly the same (`benchmarks/evaluation.py`)."""


class SequentialReconstruction:
    """Re-solves a pruned network's layers in place. The original is run once and remembered."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        seed: int,
        effort: Effort = FULL,
        memory: Memory | None = None,
    ) -> None:
        """Within ``memory`` there are fewer samples where activations are large, and fewer rows of many layers."""
        self._task, self._seed, self._rounds = task, seed, effort.rounds
        ran = graph.trace.layers
        self._layers = {
            x.name: x for x in graph.layers if solvable(task.model, x) and x.name in ran and ran[x.name].calls == 1
        }
        weights: list[Any] = [task.model.get_submodule(name).weight for name in self._layers]
        # bytes of a row of outputs, of streams, and of where a kernel's taps lie
        of_all = sum(8 * len(weight) + 4 * weight[0, 0].numel() for weight in weights)
        self._rows = min(effort.rows, max(1, memory.share // max(1, of_all))) if memory else effort.rows
        samples = memory.batch(graph.trace.peak, effort.samples) if memory else effort.samples
        self._folder = Folder(task.model, graph.layers, task.example)
        copied = twin(task.model)
        with self._folder.folded(copied):
            self._joins = find_joins(copied, self._layers, task.example)
        chosen = sample(task.splits.calibration, samples, seed)
        inputs, _ = chosen.fetch(torch.arange(len(chosen)))
        self._inputs = tree_map_only(Tensor, _channels_last, nested.to(inputs, task.device))
        self._before = _sites_before(graph, task.model, self._layers)
        self._solved = _Solutions(memory.share // 4 if memory else _ROOM)
        self._positions: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._added: dict[str, Tensor] = {}
        self._taps: dict[str, Taps] = {}

    def __call__(self, network: nn.Module, kept: Kept, halved: bool = False) -> None:
        """Re-solve ``network``, which wears the policy ``kept`` with the solution without drift.

        ``halved``: the pruned network's features are computed in bfloat16, the regressions in float32 all the same.
        """
        if not self._outputs:
            self._remember()
        watch = Watch(self._joins.streams)
        channels = [k.tobytes() for k in kept]
        norms = {x.name: network.get_submodule(x.norm) for x in self._layers.values() if x.norm}
        cut, silent = False, silenced(list(self._layers.values()), kept)

        def visit(layer: Layer, module: Any, x: Tensor) -> None:
            nonlocal cut
            outputs = None if layer.output is None else torch.from_numpy(layer.output.kept(kept)).to(x.device)
            heard = layer.name not in silent and (outputs is None or len(outputs) > 0)
            if cut and heard and layer.name in self._outputs:  # a cut network may call layers that the original did not
                norm = self._norm(norms, layer, outputs)
                known = (layer.name, halved, *(channels[site] for site in self._before[layer.name]))
                if known not in self._solved:
                    found = self._solve(layer, module, norm, x, outputs, watch.found.get(layer.name))
                    self._solved.put(known, found)
                _wear(module, norm, self._solved[known])
            cut = cut or (layer.output is not None and len(outputs) < len(layer.output.site))  # type: ignore[arg-type]
            watch.forget(layer.name)

        with torch.autocast(self._task.device.type, torch.bfloat16, enabled=halved):
            self._walk(network, visit, watch)

    def forget(self) -> None:
        """Solve every layer anew from here on."""
        self._solved.clear()

    def _solve(
        self, layer: Layer, module: Any, norm: _Norm | None, x: Tensor, outputs: Tensor | None, stream: Tensor | None
    ) -> _Solution | None:
        """The layer's weights and constant for its inputs ``x``, where ``stream`` is what its output is added to."""
        positions, target = self._positions[layer.name], _cut(self._outputs[layer.name], outputs)
        rows = rows_at(module, x, positions, self._taps.get(layer.name))
        known = layer.name in self._added
        if stream is not None and known and _is_like(stream, module, x, target.shape[1]):
            now = outputs_at(module, stream, positions).to(target.dtype)
            scale = 1.0 if norm is None else undone(norm[0])
            target = target + (_cut(self._added[layer.name], outputs) - now) * scale
        activation = self._joins.activations.get(layer.name)
        matching = None if activation is None else _matching(activation, target, norm, self._rounds)
        has_constant = module.bias is not None or norm is not None
        with torch.autocast(x.device.type, enabled=False):
            weight = module.weight.flatten(1)
            return regression(rows, target, weight, has_constant, matching)

    def _remember(self) -> None:
        """One pass of the original: every layer's outputs, and what they are added to, at random positions."""
        watch = Watch(self._joins.streams)

        def visit(layer: Layer, module: Any, x: Tensor) -> None:
            generator = torch.Generator().manual_seed(self._seed + len(self._positions))
            chosen = choose_positions(module, x, -(-self._rows // len(x)), generator)
            self._positions[layer.name] = chosen
            if not isinstance(module, nn.Linear):
                self._taps[layer.name] = find_taps(module, x, chosen)
            rows = rows_at(module, x, chosen, self._taps.get(layer.name))
            self._outputs[layer.name] = F.linear(rows, module.weight.flatten(1), module.bias)
            if layer.name in watch.found:
                self._added[layer.name] = outputs_at(module, watch.found[layer.name], chosen)
            watch.forget(layer.name)

        self._walk(twin(self._task.model), visit, watch)

    def _norm(self, norms: Mapping[str, nn.Module], layer: Layer, outputs: Tensor | None) -> _Norm | None:
        """The BatchNorm behind a layer, with the mean that it had in the original."""
        if layer.norm is None:
            return None
        mean = self._task.model.get_submodule(layer.norm).running_mean
        assert isinstance(mean, Tensor)
        return norms[layer.name], mean if outputs is None else mean.index_select(0, outputs)

    def _walk(self, network: nn.Module, visit: Visit, watch: Watch) -> None:
        """One forward pass; ``visit`` sees every solvable layer with its input, and its norm, before they run."""
        seen: set[str] = set()

        def hook(layer: Layer, fold: Callable[[str], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def pause(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                watch.begin(layer.name)
                if layer.name in seen:  # a network that takes its batch in parts: the first one tells
                    return
                seen.add(layer.name)
                with watch.paused():
                    visit(layer, module, inputs[0])
                    fold(layer.name)

            return pause

        with self._folder.folded(network, self._layers) as fold:
            handles = [
                network.get_submodule(n).register_forward_pre_hook(hook(x, fold)) for n, x in self._layers.items()
            ]
            try:
                with torch.no_grad(), without_fast_path(), watch:
                    nested.call(network, self._inputs)
            finally:
                for handle in handles:
                    handle.remove()


def _is_like(stream: Tensor, module: Any, x: Tensor, channels: int) -> bool:
    """Whether a stream has the shape of the layer's output: a cut network may run other operators than the original."""
    if isinstance(module, nn.Linear):
        return stream.shape == (*x.shape[:-1], channels)
    return stream.ndim == x.ndim and stream.shape[:2] == (len(x), channels) and outputs_fit(module, x, stream)


def _cut(rows: Tensor, outputs: Tensor | None) -> Tensor:
    return rows if outputs is None else rows.index_select(1, outputs)


def undone(module: Any) -> Tensor:
    """What takes a difference behind a BatchNorm to one before it ``[C]``; 0 for channels that it nearly silences."""
    deviation = (module.running_var + module.eps).sqrt()
    scale = (torch.ones_like(deviation) if module.weight is None else module.weight) / deviation
    heard = scale.abs() > _LEAST_SCALE * scale.abs().max()
    return torch.where(heard, 1 / torch.where(heard, scale, 1.0), 0.0)


@dataclass(frozen=True, eq=False)
class _Matching:
    """What follows a layer, and what was there in the original (see above)."""

    rounds: int
    activation: Activation
    wanted: Tensor
    """Behind the activation ``[n, C]``."""
    scale: Tensor
    """Of the norm between them ``[C]``, 0 where it nearly silences a channel, and its inverse, 0 there too."""
    inverse: Tensor
    shift: Tensor

    def missing(self, outputs: Tensor) -> Tensor:
        """What the layer's ``outputs [n, C]`` lack behind the activation, as a change of them."""
        behind = self.activation(torch.addcmul(self.shift, self.scale, outputs))
        return (self.wanted - behind).mul_(self.inverse)


def _matching(activation: Activation, target: Tensor, norm: _Norm | None, rounds: int) -> _Matching:
    """For an activation behind a norm, where ``target [n, C]`` is wanted of the layer."""
    inverse = target.new_ones(target.shape[1]) if norm is None else undone(norm[0])
    scale, shift = torch.where(inverse == 0, 0.0, 1 / inverse), torch.zeros_like(inverse)
    if norm is not None:
        shift = (0.0 if norm[0].bias is None else norm[0].bias) - norm[1] * scale
    return _Matching(rounds, activation, activation(scale * target + shift), scale, inverse, shift)


def regression(
    x: Tensor, y: Tensor, before: Tensor, has_constant: bool, matching: _Matching | None = None
) -> _Solution | None:
    """Weights and constant that make ``y [n, C]`` of ``x [n, D]``, pulled towards the weights ``before [C, D]``.

    Where ``x`` is of bfloat16, products with it lose nothing, and what the rounds ask for is rounded to it.
    """
    rows, x = x, x.to(before.dtype)
    x_mean = x.mean(0)
    middle = x_mean if has_constant else torch.zeros_like(x_mean)
    c = _covariance_of_halves(x, x_mean, has_constant) if rows.dtype == torch.bfloat16 else None
    if c is None:
        if has_constant:
            x, middle = x - x_mean, torch.zeros_like(x_mean)
        c, rows = _products(x), x
    ridge = RIDGE * c.diagonal().mean().clamp_min(torch.finfo(c.dtype).tiny)
    c = c.double()
    c.diagonal().add_(ridge)
    factor, bad = torch.linalg.cholesky_ex(c)
    if int(bad):
        return None

    def solve(products: Tensor) -> Tensor:
        return torch.cholesky_solve(products.T.double(), factor).T.to(before.dtype).contiguous()

    y_mean = y.mean(0) if has_constant else y.new_zeros(y.shape[1])
    weight = solve((y - y_mean).T @ x / len(x) + ridge * before)
    if matching is not None:
        outputs = F.linear(x, weight, y_mean - weight @ middle)
        for _ in range(matching.rounds):
            missing = matching.missing(outputs)
            mean = missing.mean(0) if has_constant else torch.zeros_like(y_mean)
            products = (missing - mean).to(rows.dtype).T @ rows
            change = solve(products.to(before.dtype) / len(x) - ridge * (weight - before))
            weight, y_mean = weight + change, y_mean + mean
            outputs += F.linear(rows, change.to(rows.dtype)) + (mean - change @ middle)
    return weight, y_mean - weight @ x_mean


def _products(x: Tensor) -> Tensor:
    """``xᵀx / n`` of ``[n, D]``, of which only the lower triangle is right: half of the work."""
    size = x.shape[1]
    found = x.new_zeros(size, size)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        found[start:end, :end] = x[:, start:end].T @ x[:, :end]
    return found.div_(len(x))


def _covariance_of_halves(x: Tensor, mean: Tensor, centred: bool) -> Tensor | None:
    """`_products`, less the mean's share if ``centred``. None where the mean would leave nothing but round-off."""
    with _products_of_halves():
        c = _products(x)
    if not centred:
        return c
    c.addr_(mean, mean, alpha=-1)
    return None if bool((c.diagonal() < _LEAST_VARIANCE * mean**2).any()) else c


@contextmanager
def _products_of_halves() -> Iterator[None]:
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


def _wear(module: Any, norm: _Norm | None, solution: _Solution | None) -> None:
    """Give a layer its solution; without one it stays as it is."""
    if solution is None:
        return
    weight, constant = solution
    module.weight = nn.Parameter(weight.reshape(module.weight.shape), requires_grad=False)
    if module.bias is not None:
        module.bias = nn.Parameter(constant, requires_grad=False)
    elif norm is not None:  # what the BatchNorm subtracts less is what the layer gives less
        norm[0].running_mean = norm[1] - constant


class _Solutions:
    """The solutions of late, up to so many bytes: policies that begin alike have their first layers in common."""

    def __init__(self, room: int) -> None:
        self._room, self._used = room, 0
        self._found: OrderedDict[tuple[Any, ...], _Solution | None] = OrderedDict()

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return key in self._found

    def __getitem__(self, key: tuple[Any, ...]) -> _Solution | None:
        self._found.move_to_end(key)
        return self._found[key]

    def clear(self) -> None:
        """Keep nothing."""
        self._found.clear()
        self._used = 0

    def put(self, key: tuple[Any, ...], solution: _Solution | None) -> None:
        """Keep a solution; those that were not used for longest go."""
        self._found[key] = solution
        self._used += _bytes(solution)
        while self._used > self._room and len(self._found) > 1:
            self._used -= _bytes(self._found.popitem(last=False)[1])


def _bytes(solution: _Solution | None) -> int:
    return sum(t.numel() * t.element_size() for t in solution or ())


def _channels_last(x: Tensor) -> Tensor:
    """Pixels whose channels lie together: convolutions are faster, and rows are read off them faster."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _sites_before(graph: Graph, model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, list[int]]:
    """For every layer the sites that what reaches it, and it itself, depend on: those of all that has run by then.

    What has no place in the order (bare parameters, modules around others) counts as first.
    """
    places = {name: place for place, name in enumerate(graph.trace.layers)}
    first: dict[int, int] = {}
    for layer in graph.layers:
        leaf = layer.name in places and not any(True for _ in model.get_submodule(layer.name).children())
        place = places[layer.name] if leaf else -1
        for axis in (layer.output, layer.input):
            for site in np.unique(axis.site[axis.site >= 0]).tolist() if axis else ():
                first[site] = min(place, first.get(site, place))
    return {name: sorted(s for s, place in first.items() if place <= places[name]) for name in layers}
