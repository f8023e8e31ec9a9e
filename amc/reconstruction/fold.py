"""BatchNorms folded into the layers before them, while a network is in evaluation mode.

There a BatchNorm multiplies every channel by a factor and adds a constant, which the weights and the bias of the layer
before can do as well. That saves a third of ResNet-56's time on a CPU (`benchmarks/evaluation.py`). Afterwards the
network is as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from amc.graph.channels import BATCH_NORMS, CONVS, Layer
from amc.graph.surgery import shallow_copy
from amc.task import nested
from amc.task.nested import Nested

_TOLERANCE = 1e-3  # of the largest output


class NormFolder:
    """Folds the BatchNorms of a network, and of networks that are cut from it, where that changes no output.

    >>> from amc.graph.channels import ModuleKind
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> folder = NormFolder(model, [Layer("0", ModuleKind.CONV, None, norm="1")], torch.ones(1, 3, 8, 8))
    >>> with folder.folded(model):
    ...     print(model[1])
    Identity()
    """

    def __init__(self, model: nn.Module, layers: Iterable[Layer], example: Nested) -> None:
        """``layers`` name the norms after them. Nothing is folded where the outputs for ``example`` would change."""
        modules = [x for x in layers if x.is_conv_or_linear]  # norms may follow bare parameters too
        self._pairs = {x.name: x.norm for x in modules if x.norm and _foldable(model, x.name, x.norm)}
        if self._pairs and not self._keeps_outputs(model, example):
            self._pairs = {}

    @contextmanager
    def folded(self, network: nn.Module, later: Container[str] = ()) -> Iterator[Callable[[str], None]]:
        """``network`` without the norms. The yielded function folds layers in ``later``, by name."""
        folding = _Folding(network, self._pairs)
        try:
            for name, norm in self._pairs.items():
                _replace(network, norm, nn.Identity())
                if name not in later:
                    folding.fold(name)
            yield folding.fold
        finally:
            folding.undo()

    def _keeps_outputs(self, model: nn.Module, example: Nested) -> bool:
        """Whether the outputs stay the same: not if a module reads a layer's output before its norm."""
        copied = shallow_copy(model).eval()
        _randomise([copied.get_submodule(norm) for norm in self._pairs.values()])
        with torch.inference_mode():
            before = tree_leaves(nested.call(copied, example))
            try:
                with self.folded(copied):
                    after = tree_leaves(nested.call(copied, example))
            except Exception:  # noqa: BLE001  (code that inspects its norms may raise anything)
                return False
        same = len(before) == len(after)
        return same and all(_alike(b, a) for b, a in zip(before, after, strict=True) if isinstance(b, Tensor))


class _Folding:
    """The norms taken out of one network, and the weights that its layers had before."""

    def __init__(self, network: nn.Module, pairs: Mapping[str, str]) -> None:
        self._network, self._pairs = network, pairs
        self._norms = {name: network.get_submodule(norm) for name, norm in pairs.items()}
        self._before: dict[str, tuple[Any, Any]] = {}

    def fold(self, name: str) -> None:
        """Fold a layer's norm into its weights, unless that is done or it has none."""
        if name in self._norms and name not in self._before:
            layer: Any = self._network.get_submodule(name)
            norm: Any = self._norms[name]
            self._before[name] = layer.weight, layer.bias
            with torch.no_grad():
                layer.weight, layer.bias = fuse_conv_bn_weights(
                    layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )

    def undo(self) -> None:
        for name, norm in self._pairs.items():
            _replace(self._network, norm, self._norms[name])
        for name, (weight, bias) in self._before.items():
            layer = self._network.get_submodule(name)
            layer.weight, layer.bias = weight, bias


def _foldable(model: nn.Module, name: str, norm: str) -> bool:
    layer, behind = model.get_submodule(name), model.get_submodule(norm)
    plain = isinstance(layer, (nn.Linear, *CONVS))
    return plain and "weight" in layer._parameters and type(behind) in BATCH_NORMS and behind.running_mean is not None


def _randomise(norms: Iterable[Any]) -> None:
    """Give norms random statistics: leaving out a norm that changes nothing would not show."""
    generator = torch.Generator().manual_seed(0)
    for norm in norms:
        mean, variance = norm.running_mean, norm.running_var
        deviation = variance.sqrt().cpu()
        shift = deviation * (torch.rand(mean.shape, generator=generator) - 0.5)
        norm.running_mean = mean + shift.to(mean)
        norm.running_var = variance * (0.5 + torch.rand(mean.shape, generator=generator)).to(variance)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    network.get_submodule(parent)._modules[key] = module


def _alike(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or not before.is_floating_point() or not before.numel():
        return bool(torch.equal(before, after))
    return torch.allclose(before, after, rtol=0, atol=_TOLERANCE * float(before.abs().max()))
