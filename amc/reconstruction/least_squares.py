"""Least-squares reconstruction of the layers that read pruned channels, from moments collected once.

Notation, for one layer with weights ``W [out, D]`` (D = input channels × kernel taps) and inputs ``x [D]``:

=====  =========================================================================================
μ, C   mean and covariance of x over calibration images and random positions
K      the elements of x that remain (all taps of the channels kept)
λ      ridge: 1e-3 × mean of diag C_KK; pulls towards the weights as they were, not towards 0
W'     argmin over V of E‖W x − V x_K − const‖² + λ‖V − W_K‖²
       = (W C_:K + λ W_K)(C_KK + λ I)⁻¹
δ      W μ − W' μ_K, what the outputs' mean lost
=====  =========================================================================================

AMC (arXiv:1802.03494, section 3.4; He et al. 2017) solves this anew in every episode by regression on raw
features, for 1×1 kernels and without intercept. With μ and C a layer's solution depends on K alone and is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.graph.build import Graph
from amc.graph.channels import Kept, Layer
from amc.runtime.memory import Memory, Shelf
from amc.task import Task, batches, nested
from amc.task.data import sample

RIDGE = 1e-3
IMAGES = 1024
"""As many tell statistics; solutions for what really reaches a layer are better with more
(`amc.reconstruction.sequential`)."""
MOST_ELEMENTS = 8192
"""Layers with longer rows are not re-solved: their covariance would not fit into memory (0.27 GB at this length)."""
_CACHE_BYTES = 512 << 20
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
    """
    if layer.kind not in ("conv", "linear"):
        return False
    module = model.get_submodule(layer.name)
    plain = "weight" in module._parameters and type(module).forward in _FORWARDS
    dense = not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups == 1
    return plain and dense and _row(module) <= MOST_ELEMENTS


_FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)


def readers(graph: Graph, model: nn.Module) -> list[Layer]:
    """The layers that can be re-solved and have a site before them."""
    return [layer for layer in graph.layers if layer.input is not None and solvable(model, layer)]


def _row(module: nn.Module | None) -> int:
    weight = getattr(module, "weight", None)
    return weight[0].numel() if isinstance(weight, Tensor) else 0


def collect(
    task: Task,
    layers: Iterable[Layer],
    seed: int,
    batch_size: int = 64,
    shelf: Shelf[Moments] | None = None,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Mapping[str, Moments]:
    """Moments of the inputs of ``layers`` in the unpruned network over the calibration split, or `IMAGES` of it.

    Sums are float64. Every layer draws its positions from a seed of its own, 8 to 20 thousand rows in all. Layers whose
    sums take more than ``limit`` bytes together have a pass each, or one for some of them; the moments are the same.
    """
    shelf = shelf if shelf is not None else new_shelf()
    seeds = {layer.name: seed * 1_000_003 + number for number, layer in enumerate(layers)}
    groups = _groups([(name, _row(task.model.get_submodule(name))) for name in seeds], limit)
    for number, names in enumerate(groups):
        done = None if progress is None else (lambda share, n=number: progress((n + share) / len(groups)))
        sums = _pass(task, {name: seeds[name] for name in names}, batch_size, done)
        for name in list(sums):  # a layer whose weights others use, as in attention, is never called itself
            shelf.put(name, _moments(*sums.pop(name)))
    return shelf


def new_shelf(memory: Memory | None = None, folder: Path | None = None) -> Shelf[Moments]:
    """A place for moments: what is over a share of the memory goes into temporary files of ``folder``."""
    return Shelf(
        lambda m: {"mean": m.mean, "covariance": m.covariance, "count": torch.tensor(m.count)},
        lambda t: Moments(t["mean"], t["covariance"], int(t["count"])),
        memory.share if memory else None,
        folder,
    )


def sums_size(model: nn.Module, layers: Iterable[Layer]) -> int:
    """Bytes of the sums and products of all these layers together."""
    return sum(_sums(_row(model.get_submodule(layer.name))) for layer in layers)


def _sums(length: int) -> int:
    return 12 * length**2


def _groups(layers: Sequence[tuple[str, int]], limit: int | None) -> list[list[str]]:
    """Layers by name and length of row, dealt in order to passes whose sums and products fit into ``limit`` bytes."""
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
) -> dict[str, list[Any]]:
    """Count, sum, products and shift of the inputs of the layers that have ``seeds``, in one pass."""
    sums: dict[str, list[Any]] = {}
    chosen = sample(task.splits.calibration, IMAGES)
    images = len(chosen)

    def hook(name: str, generator: torch.Generator) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            width = module.weight[0].numel()  # type: ignore[index]
            rows = min(max(40 * width, 8192), 20480)
            x = rows_of(module, inputs[0], -(-rows // images), generator)
            if name not in sums:
                zeros = torch.zeros(width, width, dtype=torch.float64, device=x.device)
                sums[name] = [0, torch.zeros_like(zeros[0]), zeros, x.mean(0)]
            total = sums[name]
            x = x - total[3]  # float32 products of large means would drown the variance
            total[0] += len(x)
            total[1] += x.sum(0, dtype=torch.float64)
            total[2] += x.T @ x

        return record

    handles = [
        task.model.get_submodule(name).register_forward_pre_hook(hook(name, torch.Generator().manual_seed(own)))
        for name, own in seeds.items()
    ]
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
    return sums


def _moments(count: int, total: Tensor, products: Tensor, shift: Tensor) -> Moments:
    mean = total / count
    covariance = (products / count).addr_(mean, mean, alpha=-1)
    kind = torch.float64 if len(mean) <= _DOUBLE_UP_TO else torch.float32
    return Moments((mean + shift).to(kind), covariance.to(kind), count)


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
    """Where a convolution's rows lie in its input: pixels ``[N · P · k]`` of all images, and which rows of them are not
    there, since they are padding."""

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

    ``taps`` is what was found for an input of this shape.
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
    """The layer's outputs, or what has their shape, at the positions ``chosen [N, P]``: ``[N · P, C]``."""
    y = y.reshape(len(y), -1, y.shape[-1]) if isinstance(module, nn.Linear) else y.flatten(2).transpose(1, 2)
    image = torch.arange(len(y), device=y.device)[:, None]
    return y[image, chosen.to(y.device)].flatten(0, 1)


def outputs_fit(module: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether ``y [N, C, ...]`` has as many positions as the convolution's output for the input ``x``."""
    return prod(y.shape[2:]) == prod(_output_size(module, x))


def _padding(module: nn.Conv1d | nn.Conv2d) -> tuple[int, int]:
    """Zeros above and on the left; none where padding of another kind is there already."""
    if module.padding_mode != "zeros":
        return 0, 0
    sides = module._reversed_padding_repeated_twice
    return (0 if isinstance(module, nn.Conv1d) else sides[2]), sides[0]


def _plane(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Height and width of what the kernel moves over."""
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


def elements(positions: Tensor, taps: int) -> Tensor:
    """The elements of a row that belong to the given input positions: all taps of each."""
    return (positions[:, None] * taps + torch.arange(taps, device=positions.device)).flatten()


def least_squares(weight: Tensor, moments: Moments, keep: Tensor, centred: bool = True) -> tuple[Tensor, Tensor]:
    """``W' [out, |K|]`` and ``δ [out]`` for weights ``[out, D]`` when the elements ``keep`` remain.

    Without ``centred`` there is nothing that could take δ up, and the second moments are fitted instead.
    """
    w = weight.to(moments.covariance.dtype)
    c = moments.covariance
    if not centred:
        c = c + torch.outer(moments.mean, moments.mean)
    kept = c.index_select(0, keep).index_select(1, keep)
    ridge = RIDGE * kept.diagonal().mean().clamp_min(torch.finfo(c.dtype).tiny)
    kept.diagonal().add_(ridge)
    before = w.index_select(1, keep)
    target = w @ c.index_select(1, keep) + ridge * before
    factor, bad = torch.linalg.cholesky_ex(kept)
    solved = before if int(bad) else torch.cholesky_solve(target.T, factor).T
    delta = w @ moments.mean - solved @ moments.mean.index_select(0, keep)
    return solved, delta


def lost_variances(weight: Tensor, moments: Moments, order: Tensor) -> Tensor:
    """Variance of the outputs that is lost when the first k elements of ``order [D]`` remain: ``[out, D + 1]``, all k.

    The others make up for what is gone as well as they can. With C = LLᵀ in that order (and a ridge) the inputs are Lu,
    u uncorrelated, of which the first k are known from the first k inputs: outputs WLu lose what the others add.
    """
    c = moments.covariance.index_select(0, order).index_select(1, order)
    c.diagonal().add_(RIDGE * c.diagonal().mean().clamp_min(torch.finfo(c.dtype).tiny))
    factor, bad = torch.linalg.cholesky_ex(c)
    if int(bad):  # as if they were uncorrelated
        factor = c.diagonal().clamp_min(0).sqrt().diag()
    parts = (weight.to(c.dtype).index_select(1, order) @ factor).square_()
    return F.pad(parts.flip(1).cumsum(1).flip(1), (0, 1))


def _size(solved: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(t.numel() * t.element_size() for tensors in solved.values() for t in tensors.values())


class Reconstructor:
    """Re-solved tensors of every layer for any policy, each layer and width solved once."""

    def __init__(self, graph: Graph, model: nn.Module, moments: Mapping[str, Moments]) -> None:
        self._moments = moments
        self._layers = [layer for layer in readers(graph, model) if layer.name in moments]
        self._modules = {layer.name: model.get_submodule(layer.name) for layer in self._layers}
        self._norms = {x.norm: model.get_submodule(x.norm) for x in self._layers if x.norm}
        self._sites = {x.name: np.unique(x.input.site[x.input.site >= 0]) for x in self._layers if x.input is not None}
        self._solved: OrderedDict[tuple[str, tuple[int, ...]], dict[str, dict[str, Tensor]]] = OrderedDict()
        self._bytes = 0

    def __call__(self, kept: Kept) -> dict[str, dict[str, Tensor]]:
        """Tensors by layer and name, cut along the inputs and whole along the outputs.

        ``kept`` must be nested: a site's channels at one width are always the same.
        """
        tensors: dict[str, dict[str, Tensor]] = {}
        for layer in self._layers:
            key = (layer.name, tuple(len(kept[s]) for s in self._sites[layer.name]))
            if key not in self._solved:
                self._solved[key] = self._solve(layer, kept)
                self._bytes += _size(self._solved[key])
            self._solved.move_to_end(key)
            tensors |= self._solved[key]
        while self._bytes > _CACHE_BYTES:
            self._bytes -= _size(self._solved.popitem(last=False)[1])
        return tensors

    def _solve(self, layer: Layer, kept: Kept) -> dict[str, dict[str, Tensor]]:
        assert layer.input is not None
        module, moments = self._modules[layer.name], self._moments[layer.name]
        positions = layer.input.kept(kept)
        if len(positions) in (0, len(layer.input.site)):
            return {}
        weight = module.weight
        assert isinstance(weight, Tensor)
        keep = elements(torch.from_numpy(positions).to(weight.device), weight[0, 0].numel())
        has_bias = module.bias is not None
        solved, delta = least_squares(weight.detach().flatten(1), moments, keep, has_bias or layer.norm is not None)
        shape = (len(weight), len(positions), *weight.shape[2:])
        tensors = {layer.name: {"weight": solved.to(weight.dtype).reshape(shape).contiguous()}}
        if has_bias:
            assert isinstance(module.bias, Tensor)
            tensors[layer.name]["bias"] = module.bias.detach() + delta.to(weight.dtype)
        elif layer.norm is not None:
            # the BatchNorm subtracts its running mean: a mean that is lower by δ gives δ back
            mean = self._norms[layer.norm].running_mean
            assert isinstance(mean, Tensor)
            tensors[layer.norm] = {"running_mean": mean - delta.to(mean.dtype)}
        return tensors
