"""Sequential reconstruction: every layer re-solved on its actual inputs in the pruned network.

`amc.reconstruction.least_squares` fits each layer to the original's inputs, so that a solution depends on widths alone
and is cached. In the pruned network the inputs are different, since the layers before have errors. Here one forward
pass over calibration samples re-solves layer after layer *while it runs*: when the pass reaches a layer, all layers
before it are solved. Notation as in `amc.reconstruction.least_squares`, for one layer:

=====  =========================================================================================
x̃      its inputs in the pruned network
y      its outputs in the original
d      where its output is added to a stream: the original's stream minus the pruned network's
W'     argmin over V of E‖y + d/s − V x̃ − const‖² + λ‖V − W₀‖², W₀ the solution on the original's
       inputs, s the scale of the BatchNorm between the layer and the stream
=====  =========================================================================================

Regression on the pruned network's own features is He et al.'s (arXiv:1707.06168, section 3.2); the correction by the
stream is theirs for residual branches ("multi-branch enhancement"), here for every addition.

An operator may restrict weights, such as to few bits. Then a layer's new weights are restricted while it runs, so that
the layers after it make up for the error (for bits: GPTQ, Frantar et al. 2022, arXiv:2210.17323).

Where an activation φ alone reads a layer, differences that φ removes need not be fitted: below zero a ReLU gives zero
for all values. There W' minimises the matching loss, E Σ ∫ φ(s) − φ(y) ds from y to V x̃ + const (Auer, Herbster &
Warmuth, NIPS 1995), convex where φ never decreases. No slope is above 1, so a regression on V x̃ + φ(y) − φ(V x̃) always
lowers it. Some rounds of these follow the first regression, with the same factor, for the changes alone. Zhang et al.
(arXiv:1505.06798) also fit the output of ReLUs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from amc.graph.attention import without_fast_path
from amc.graph.channels import Kept, Layer
from amc.graph.sites import Graph
from amc.graph.surgery import layers_without_input, shallow_copy
from amc.operators.operator import Restriction
from amc.reconstruction.fold import NormFolder
from amc.reconstruction.moments import solvable
from amc.reconstruction.regression import Norm, Solution, inverse_scale, matching_of, regression, second_moments
from amc.reconstruction.residuals import StreamWatch, find_output_uses
from amc.reconstruction.rows import Taps, choose_positions, find_taps, outputs_at, outputs_fit, rows_at
from amc.reconstruction.solutions import SolutionCache, apply_solution
from amc.runtime.memory import Memory, cache_room
from amc.task import Task, nested
from amc.task.splits import sample

_ROWS_PER_ELEMENT = 12
"""Rows from which a restriction takes its moments, for each element of a row; more hardly change it."""
_MOST_ROOM = 256 << 20  # bytes of solutions that are kept

Visit = Callable[[Layer, Any, Tensor], None]
"""Called with a layer, its module and its input before it runs."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on re-solving a network.

    >>> FAST.samples < FULL.samples
    True
    """

    samples: int
    """Calibration samples that pass through the network."""
    rows: int
    """Rows that a layer is fitted on, of all samples together."""
    rounds: int
    """Regressions after the first where an activation follows."""


FULL = Effort(4096, 24576, 4)
FAST = Effort(384, 6144, 2)
"""In a search: it ranks policies nearly the same (`benchmarks/evaluation.py`)."""


@dataclass(frozen=True, eq=False)
class Target:
    """A layer's outputs in the original, at P random positions of each of N samples."""

    positions: Tensor
    """``[N, P]``"""
    taps: Taps | None
    """Where a convolution reads its inputs for these positions."""
    outputs: Tensor
    """``[N · P, C]``"""
    stream: Tensor | None
    """The stream that the outputs are added to ``[N · P, C]``, if any."""


@dataclass(eq=False)
class _PrunedPass:
    """A forward pass of a pruned network, whose layers are re-solved while it runs."""

    kept: Kept
    channels: Sequence[bytes]
    """The kept channels of every site, as a part of cache keys."""
    norms: Mapping[str, nn.Module]
    """The BatchNorms after layers, by the layer's name."""
    zeroed: Container[str]
    """Names of the layers of whose inputs nothing remains."""
    half: bool
    watch: StreamWatch
    restrictions: Mapping[str, Restriction]
    """How weights are restricted, by the layer's name."""
    cut: bool = False
    """Whether a layer before this one was narrowed or restricted; until then, inputs are those of the original."""
    restricted: tuple[tuple[str, Restriction], ...] = ()
    """The layers that are restricted so far, as a part of cache keys."""


@dataclass(frozen=True, eq=False)
class _Visitor:
    """Interrupts a forward pass before layers run: visits each of them, then folds its norm."""

    visit: Visit
    fold: Callable[[str], None]
    watch: StreamWatch
    seen: set[str] = field(default_factory=set)

    def before(self, layer: Layer, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook of the layer."""
        self.watch.begin(layer.name)
        if layer.name in self.seen:  # a network that splits its batch: the first part counts
            return
        self.seen.add(layer.name)
        with self.watch.paused():
            self.visit(layer, module, inputs[0])
            self.fold(layer.name)


class SequentialReconstruction:
    """Re-solves a pruned network's layers in place. The original is run once, and its outputs are kept."""

    def __init__(
        self, task: Task, graph: Graph, seed: int, effort: Effort = FULL, memory: Memory | None = None
    ) -> None:
        """``memory`` limits the samples where activations are large, and the rows where there are many layers.

        ``seed`` draws the samples, and the positions in every layer's output.
        """
        self._task, self._seed, self._rounds = task, seed, effort.rounds
        ran = graph.trace.layers
        self._layers = {
            x.name: x for x in graph.layers if solvable(task.model, x) and x.name in ran and ran[x.name].calls == 1
        }
        weights: list[Any] = [task.model.get_submodule(name).weight for name in self._layers]
        # bytes of a row of outputs and of streams, and of the positions of a kernel's taps
        of_all = sum(8 * len(weight) + 4 * weight[0, 0].numel() for weight in weights)
        self._rows = min(effort.rows, max(1, memory.share // max(1, of_all))) if memory else effort.rows
        samples = memory.batch(graph.trace.peak, effort.samples) if memory else effort.samples
        self._folder = NormFolder(task.model, graph.layers, task.example)
        copied = shallow_copy(task.model)
        with self._folder.folded(copied):
            self._uses = find_output_uses(copied, self._layers, task.example)
        chosen = sample(task.splits.calibration, samples, seed)
        inputs, _ = chosen.fetch(torch.arange(len(chosen)))
        self.inputs = tree_map_only(Tensor, _channels_last, nested.to(inputs, task.device))
        """The samples that pass through the networks."""
        self._before = _sites_before(graph, task.model, self._layers)
        of_policy = sum(weight.numel() * weight.element_size() for weight in weights)
        self._solved = SolutionCache(cache_room(of_policy, memory, _MOST_ROOM))
        self._targets: dict[str, Target] = {}

    def __call__(
        self,
        network: nn.Module,
        kept: Kept,
        half: bool = False,
        restrictions: Mapping[str, Restriction] | None = None,
    ) -> None:
        """Re-solve ``network``, which keeps the channels ``kept`` and has the solutions on the original's inputs.

        ``half``: the pruned network's features are computed in bfloat16; the regressions stay in float32. Weights of
        layers with ``restrictions`` are restricted after they are re-solved, and before the layers after them are.
        """
        if not self._targets:
            self._targets = self._read_original()
        layers, watch = list(self._layers.values()), StreamWatch(self._uses.streams)
        norms = {x.name: network.get_submodule(x.norm) for x in layers if x.norm}
        channels, zeroed = [k.tobytes() for k in kept], layers_without_input(layers, kept)
        pruned = _PrunedPass(kept, channels, norms, zeroed, half, watch, restrictions or {})
        with torch.autocast(self._task.device.type, torch.bfloat16, enabled=half):
            self._walk(network, partial(self._resolve, pruned), watch)

    def forget(self) -> None:
        """Drop the cached solutions."""
        self._solved.clear()

    def _resolve(self, pruned: _PrunedPass, layer: Layer, module: Any, x: Tensor) -> None:
        """Re-solve a layer with the inputs ``x`` in a pass of a pruned network; the layers before it are solved."""
        outputs = None if layer.output is None else torch.from_numpy(layer.output.kept(pruned.kept)).to(x.device)
        solved = layer.name not in pruned.zeroed and (outputs is None or len(outputs) > 0)
        solved = solved and layer.name in self._targets  # a cut network may call layers the original did not
        restriction = pruned.restrictions.get(layer.name) if solved else None
        if restriction is not None:
            pruned.restricted += ((layer.name, restriction),)
        if solved and (pruned.cut or restriction is not None):
            norm = self._norm(pruned.norms, layer, outputs)
            channels = (pruned.channels[site] for site in self._before[layer.name])
            key = (layer.name, pruned.half, *channels, *pruned.restricted)
            if key not in self._solved:
                stream = pruned.watch.found.get(layer.name)
                found = self._solve(layer, module, norm, x, outputs, stream) if pruned.cut else None
                if restriction is not None:
                    found = self._restricted(layer, module, norm, x, found, restriction)
                self._solved.put(key, found)
            apply_solution(module, norm, self._solved[key])
            pruned.cut |= restriction is not None
        if layer.output is not None and outputs is not None and len(outputs) < len(layer.output.site):
            pruned.cut = True
        pruned.watch.forget(layer.name)

    def _solve(
        self, layer: Layer, module: Any, norm: Norm | None, x: Tensor, outputs: Tensor | None, stream: Tensor | None
    ) -> Solution | None:
        """The layer's weights and constant for its inputs ``x``, where its output is added to ``stream``.

        ``outputs``: the channels of its output that remain; None: all.
        """
        target = self._targets[layer.name]
        wanted, rows = _cut(target.outputs, outputs), rows_at(module, x, target.positions, target.taps)
        if stream is not None and target.stream is not None and _is_like(stream, module, x, wanted.shape[1]):
            now = outputs_at(module, stream, target.positions).to(wanted.dtype)
            scale = 1.0 if norm is None else inverse_scale(norm[0])
            wanted = wanted + (_cut(target.stream, outputs) - now) * scale
        activation = self._uses.activations.get(layer.name)
        matching = None if activation is None else matching_of(activation, wanted, norm, self._rounds)
        has_constant = module.bias is not None or norm is not None
        with torch.autocast(x.device.type, enabled=False):
            weight = module.weight.flatten(1)
            return regression(rows, wanted, weight, has_constant, matching)

    def _restricted(
        self, layer: Layer, module: Any, norm: Norm | None, x: Tensor, solution: Solution | None, restrict: Restriction
    ) -> Solution:
        """A layer's ``solution`` for its inputs ``x``, or its present weights, restricted."""
        target = self._targets[layer.name]
        weight, constant = solution or _present(module, norm)
        with torch.autocast(x.device.type, enabled=False):
            rows = rows_at(module, x, target.positions, target.taps).to(weight.dtype)
            mean = rows.mean(0)
            if module.bias is None and norm is None:  # an error of the mean cannot be made up for
                mean = torch.zeros_like(mean)
            rows = rows[:: max(1, len(rows) // (_ROWS_PER_ELEMENT * rows.shape[1]))] - mean
            found = restrict(weight, second_moments(rows))
            return found, constant + (weight - found) @ mean

    def _read_original(self) -> dict[str, Target]:
        """The outputs of every layer in one pass of the original."""
        watch, targets = StreamWatch(self._uses.streams), dict[str, Target]()
        self._walk(shallow_copy(self._task.model), partial(self._read_target, watch, targets), watch)
        return targets

    def _read_target(
        self, watch: StreamWatch, targets: dict[str, Target], layer: Layer, module: Any, x: Tensor
    ) -> None:
        """Add the target of a layer with the inputs ``x`` in a pass of the original."""
        generator = torch.Generator().manual_seed(self._seed + len(targets))
        positions = choose_positions(module, x, -(-self._rows // len(x)), generator)
        taps = None if isinstance(module, nn.Linear) else find_taps(module, x, positions)
        outputs = F.linear(rows_at(module, x, positions, taps), module.weight.flatten(1), module.bias)
        stream = watch.found.get(layer.name)
        added = None
        if stream is not None and _is_like(stream, module, x, outputs.shape[1]):
            added = outputs_at(module, stream, positions)
        targets[layer.name] = Target(positions, taps, outputs, added)
        watch.forget(layer.name)

    def _norm(self, norms: Mapping[str, nn.Module], layer: Layer, outputs: Tensor | None) -> Norm | None:
        """The BatchNorm after a layer, with the mean that it had in the original."""
        if layer.norm is None:
            return None
        mean = self._task.model.get_submodule(layer.norm).running_mean
        assert isinstance(mean, Tensor)
        return norms[layer.name], mean if outputs is None else mean.index_select(0, outputs)

    def _walk(self, network: nn.Module, visit: Visit, watch: StreamWatch) -> None:
        """One forward pass; ``visit`` is called for every solvable layer before it and its norm run."""
        with self._folder.folded(network, self._layers) as fold:
            visitor = _Visitor(visit, fold, watch)
            handles = [
                network.get_submodule(name).register_forward_pre_hook(partial(visitor.before, layer))
                for name, layer in self._layers.items()
            ]
            try:
                with torch.no_grad(), without_fast_path(), watch:
                    nested.call(network, self.inputs)
            finally:
                for handle in handles:
                    handle.remove()


def _present(module: Any, norm: Norm | None) -> Solution:
    """The weights and the constant that a layer has: see `amc.reconstruction.solutions.apply_solution`."""
    weight = module.weight.detach().flatten(1)
    if module.bias is not None:
        return weight, module.bias.detach()
    return weight, weight.new_zeros(len(weight)) if norm is None else norm[1] - norm[0].running_mean


def _is_like(stream: Tensor, module: Any, x: Tensor, channels: int) -> bool:
    """Whether a stream has the shape of the layer's output: a cut network may run other operators than the original."""
    if isinstance(module, nn.Linear):
        return stream.shape == (*x.shape[:-1], channels)
    return stream.ndim == x.ndim and stream.shape[:2] == (len(x), channels) and outputs_fit(module, x, stream)


def _cut(rows: Tensor, outputs: Tensor | None) -> Tensor:
    return rows if outputs is None else rows.index_select(1, outputs)


def _channels_last(x: Tensor) -> Tensor:
    """The channels-last layout: convolutions and reading rows are faster."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _sites_before(graph: Graph, model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, list[int]]:
    """For every layer the sites that its input and itself depend on: those of all layers that have run by then.

    Layers without a place in the order (bare parameters, modules that contain others) count as first.
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
