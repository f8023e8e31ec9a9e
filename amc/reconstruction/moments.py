"""Moments of layers' inputs, collected once from the original network: least squares needs no other data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.graph.channels import Layer
from amc.graph.sites import Graph
from amc.reconstruction.rows import row_length, rows_of
from amc.runtime.memory import Memory, SpillStore
from amc.task import Task, batches, nested
from amc.task.splits import sample

IMAGES = 1024
"""Samples for statistics: more hardly change them. Sequential reconstruction gains by more
(`amc.reconstruction.sequential`)."""
MOST_ELEMENTS = 8192
"""Layers with longer rows are not re-solved: their covariance would not fit into memory (0.27 GB at this length)."""
_DOUBLE_UP_TO = 1024  # elements; larger matrices are kept in float32


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean ``[D]`` and covariance ``[D, D]`` of a layer's inputs, D ordered as ``weight.flatten(1)``."""

    mean: Tensor
    covariance: Tensor
    count: int


def solvable(model: nn.Module, layer: Layer) -> bool:
    """Whether a layer's weights can be re-solved: dense convolutions (1-D, 2-D) and linear layers of bounded rows.

    The weights must be the layer's own, and multiplied with its input as they are.

    >>> from amc.graph.channels import ModuleKind
    >>> model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    >>> [solvable(model, Layer(name, ModuleKind.CONV, None)) for name in ("0", "1")]
    [True, False]
    """
    if not layer.is_conv_or_linear:
        return False
    module = model.get_submodule(layer.name)
    plain = "weight" in module._parameters and type(module).forward in _FORWARDS
    dense = not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups == 1
    return plain and dense and row_length(module) <= MOST_ELEMENTS


_FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)


def readers(graph: Graph, model: nn.Module) -> list[Layer]:
    """The layers that can be re-solved and have a site before them."""
    return [layer for layer in graph.layers if layer.input is not None and solvable(model, layer)]


def collect(
    task: Task,
    layers: Iterable[Layer],
    seed: int,
    batch_size: int = 64,
    store: SpillStore[Moments] | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Mapping[str, Moments]:
    """Moments of the inputs of ``layers`` in the unpruned network over the calibration split, or `IMAGES` of it.

    Sums are float64. Every layer draws its positions with its own seed, 8 to 20 thousand rows in all. Layers whose
    sums take more than ``limit`` bytes together have a pass each, or one for some of them; the moments are the same.
    """
    store = store if store is not None else moment_store()
    seeds = {layer.name: seed * 1_000_003 + number for number, layer in enumerate(layers)}
    groups = passes([(name, row_length(task.model.get_submodule(name))) for name in seeds], limit)
    for number, names in enumerate(groups):
        done = progress and partial(_report, progress, number, len(groups))
        sums = _pass(task, {name: seeds[name] for name in names}, batch_size, done)
        for name in list(sums):  # a layer whose weights another module uses, as in attention, is never called
            store.put(name, sums.pop(name).moments())
    return store


def _report(progress: Callable[[float], None], number: int, passes: int, share: float) -> None:
    progress((number + share) / passes)


def moment_store(memory: Memory | None = None, folder: Path | None = None) -> SpillStore[Moments]:
    """A store for moments: those beyond a share of the memory are spilled to temporary files of ``folder``."""
    return SpillStore(
        lambda m: {"mean": m.mean, "covariance": m.covariance, "count": torch.tensor(m.count)},
        lambda t: Moments(t["mean"], t["covariance"], int(t["count"])),
        memory.share if memory else None,
        folder,
    )


def sums_size(model: nn.Module, layers: Iterable[Layer]) -> int:
    """Bytes of the sums and products of all these layers together."""
    return sum(_sums(row_length(model.get_submodule(layer.name))) for layer in layers)


def _sums(length: int) -> int:
    return 12 * length**2


def passes(layers: Sequence[tuple[str, int]], limit: int | None) -> list[list[str]]:
    """Names of layers, given with their row lengths, dealt in order to passes whose sums fit into ``limit`` bytes.

    >>> passes([("a", 10), ("b", 10), ("c", 100)], limit=3000)
    [['a', 'b'], ['c']]
    """
    groups: list[list[str]] = []
    room = 0
    for name, length in layers:
        size = _sums(length)
        if not groups or (limit is not None and size > room):
            groups.append([])
            room = limit or 0
        groups[-1].append(name)
        room -= size
    return groups


def _pass(
    task: Task, seeds: Mapping[str, int], batch_size: int, progress: Callable[[float], None] | None
) -> dict[str, _Sums]:
    """The sums of the inputs of the layers that have ``seeds``, in one pass."""
    chosen = sample(task.splits.calibration, IMAGES)
    images = len(chosen)
    sums = {name: _Sums(images, torch.Generator().manual_seed(own)) for name, own in seeds.items()}
    handles = [task.model.get_submodule(name).register_forward_pre_hook(own.add) for name, own in sums.items()]
    done = 0
    try:
        with torch.inference_mode():
            for inputs, _ in batches(chosen, batch_size):
                nested.call(task.model, nested.to(inputs, task.device))
                done += nested.length(inputs)
                if progress:
                    progress(done / images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: own for name, own in sums.items() if own.count}


class _Sums:
    """Sums over rows of one layer's inputs, in float64, less a shift near the mean.

    Without the shift, the variance of inputs with large means would be lost in the rounding of float32 products.
    """

    def __init__(self, images: int, generator: torch.Generator) -> None:
        self._images, self._generator = images, generator
        self.count = 0

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook: add rows at random positions of the inputs."""
        width = module.weight[0].numel()  # type: ignore[index]
        rows = min(max(40 * width, 8192), 20480)
        x = rows_of(module, inputs[0], -(-rows // self._images), self._generator)
        if not self.count:
            self._products = torch.zeros(width, width, dtype=torch.float64, device=x.device)
            self._total = torch.zeros_like(self._products[0])
            self._shift = x.mean(0)
        x = x - self._shift
        self.count += len(x)
        self._total += x.sum(0, dtype=torch.float64)
        self._products += x.T @ x

    def moments(self) -> Moments:
        """Mean and covariance of the rows."""
        mean = self._total / self.count
        covariance = (self._products / self.count).addr_(mean, mean, alpha=-1)
        kind = torch.float64 if len(mean) <= _DOUBLE_UP_TO else torch.float32
        return Moments((mean + self._shift).to(kind), covariance.to(kind), self.count)
