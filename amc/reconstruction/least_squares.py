"""Least-squares reconstruction of the layers that read pruned channels, from moments collected once.

Notation, for one layer with weights ``W [out, D]`` (D = input channels × kernel taps) and inputs ``x [D]``:

=====  =========================================================================================
μ, C   mean and covariance of x over calibration images and random positions
K      the elements of x that remain (all taps of the channels kept)
λ      ridge: 1e-3 × mean of diag C_KK; pulls towards the weights as they were, not towards 0
W'     argmin over V of E‖W x − V x_K − const‖² + λ‖V − W_K‖²
       = (W C_:K + λ W_K)(C_KK + λ I)⁻¹
δ      W μ − W' μ_K, the change of the outputs' mean, to be added to a constant
=====  =========================================================================================

AMC (arXiv:1802.03494, section 3.4; He et al. 2017) solves this anew in every episode by regression on raw
features, for 1×1 kernels and without intercept. With μ and C a layer's solution depends on K alone, and is cached.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.graph.channels import Kept, Layer
from amc.graph.sites import Graph
from amc.reconstruction.moments import Moments, readers
from amc.reconstruction.rows import elements
from amc.runtime.memory import Memory, cache_room

RIDGE = 1e-3
"""Share of the mean variance of the remaining inputs."""
_MOST_ROOM = 512 << 20  # bytes of solutions that are kept


def least_squares(weight: Tensor, moments: Moments, keep: Tensor, centred: bool = True) -> tuple[Tensor, Tensor]:
    """``W' [out, |K|]`` and ``δ [out]`` for weights ``[out, D]`` when the elements ``keep`` remain.

    Without ``centred`` no constant can be changed by δ, and the second moments are fitted instead.

    >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])  # the second input repeats the first
    >>> moments = Moments(x.mean(0), torch.cov(x.T, correction=0), len(x))
    >>> least_squares(torch.tensor([[1.0, 1.0]]), moments, keep=torch.tensor([0]))[0].round(decimals=2)
    tensor([[2.]])
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

    The remaining elements are re-solved. With C = LLᵀ in that order (and a ridge) the inputs are Lu, u uncorrelated, of
    which the first k are known from the first k inputs: of the outputs WLu the terms of the other elements are lost.

    >>> moments = Moments(torch.zeros(2), torch.eye(2), 100)
    >>> lost_variances(torch.tensor([[3.0, 4.0]]), moments, torch.tensor([1, 0])).round(decimals=1)
    tensor([[25.,  9.,  0.]])
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
    """Re-solved tensors of every layer for any policy. The solution of a layer at one input width is cached."""

    def __init__(
        self, graph: Graph, model: nn.Module, moments: Mapping[str, Moments], memory: Memory | None = None
    ) -> None:
        """``memory`` limits the solutions that are kept (`cache_room`)."""
        self._moments = moments
        self._layers = [layer for layer in readers(graph, model) if layer.name in moments]
        self._modules = {layer.name: model.get_submodule(layer.name) for layer in self._layers}
        self._norms = {x.norm: model.get_submodule(x.norm) for x in self._layers if x.norm}
        self._sites = {x.name: np.unique(x.input.site[x.input.site >= 0]) for x in self._layers if x.input is not None}
        self._solved: OrderedDict[tuple[str, tuple[int, ...]], dict[str, dict[str, Tensor]]] = OrderedDict()
        of_policy = sum(p.numel() * p.element_size() for m in self._modules.values() for p in m.parameters(False))
        self._room, self._bytes = cache_room(of_policy, memory, _MOST_ROOM), 0

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
        while self._bytes > self._room and len(self._solved) > 1:
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
            # the BatchNorm subtracts its running mean: lowering that by δ adds δ
            mean = self._norms[layer.norm].running_mean
            assert isinstance(mean, Tensor)
            tensors[layer.norm] = {"running_mean": mean - delta.to(mean.dtype)}
        return tensors
