"""Cutting a network's tensors along the axes of its sites.

A `ChannelCutter` puts the tensors of one policy after another onto the same module, so that no module is copied when
thousands of policies are evaluated. The delivered network is a deep copy that is cut once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from amc.graph.attention import adapt
from amc.graph.channels import CONVS, TRANSPOSED, Axis, BareParameter, Kept, Layer, ModuleKind, ShapeAttribute
from amc.task.checks import copied

_ONE = np.zeros(1, np.int64)


class ChannelCutter:
    """Sets the tensors of ``model`` to those of a policy. ``model`` is changed, so nothing else may use it.

    >>> from amc.graph.build import build_graph
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval()
    >>> graph = build_graph(model, torch.ones(1, 4))
    >>> ChannelCutter(model, graph.layers).cut([np.array([0, 2, 5])])
    >>> model[0].weight.shape, model[1].weight.shape
    (torch.Size([3, 4]), torch.Size([2, 3]))
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model = model
        adapt(model)
        # BatchNorms are set even where no site cuts them: reconstruction and recalibration change their statistics
        self._cut = [x for x in layers if x.output is not None or x.input is not None or x.kind is ModuleKind.NORM]
        self._source = {layer.name: own_tensors(model, layer) for layer in self._cut if layer.has_tensors}
        self._held = {
            (x.name, x.kind): getattr(model.get_submodule(x.name), x.kind.key)
            for x in self._cut
            if isinstance(x.kind, ShapeAttribute)
        }

    def cut(self, kept: Kept, solved: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        """Cut every tensor to ``kept``.

        ``solved`` gives tensors by layer and key that replace the original ones: cut along the input already, still
        whole along the output. Where a site keeps nothing, as in a removed residual branch, one zeroed channel stays.
        """
        solved, present = solved or {}, [channels if len(channels) else _ONE for channels in kept]
        for layer in self._cut:
            if isinstance(layer.kind, ShapeAttribute):
                self._set_attribute(layer, layer.kind, present)
            elif layer.has_tensors:
                self._set_tensors(layer, present, solved.get(layer.name, {}))
        zero_removed(self._model, self._cut, kept)

    def _set_attribute(self, layer: Layer, attribute: ShapeAttribute, kept: Kept) -> None:
        assert layer.output is not None
        whole, place = self._held[layer.name, attribute], attribute.place
        left, count = len(layer.output.kept(kept)), len(layer.output)
        new = whole * left // count if place is None else (*whole[:place], left, *whole[place + 1 :])
        setattr(self._model.get_submodule(layer.name), attribute.key, new)

    def _set_tensors(self, layer: Layer, kept: Kept, ready: Mapping[str, Tensor]) -> None:
        device = next(iter(self._source[layer.name].values())).device if self._source[layer.name] else None
        remaining: dict[int, Tensor] = {}
        for axis in (layer.output, layer.input):
            if axis is not None:
                remaining[id(axis)] = torch.from_numpy(axis.kept(kept)).to(device)
        for key, tensor in self._source[layer.name].items():
            new = ready.get(key, tensor)
            for dim, axis in enumerate(axes_of(self._model, layer, key, tuple(tensor.shape))):
                if axis is not None and not (key in ready and axis is layer.input):
                    new = new.index_select(dim, remaining[id(axis)])
            _set(holder_of(self._model, layer, key), key.rpartition(".")[2], new)
        if not isinstance(layer.kind, BareParameter):
            width = len(remaining[id(layer.output)]) if layer.output is not None else None
            _set_widths(self._model.get_submodule(layer.name), layer, width)


def layers_without_input(layers: Sequence[Layer], kept: Kept) -> list[str]:
    """The layers whose inputs are all removed, and the BatchNorms after them.

    >>> from amc.graph.channels import Axis
    >>> layer = Layer("conv2", ModuleKind.CONV, None, Axis(np.zeros(4, int), np.arange(4)), norm="bn2")
    >>> layers_without_input([layer], [np.array([], int)])
    ['conv2', 'bn2']
    """
    if all(len(channels) for channels in kept):
        return []
    unfed = [x for x in layers if x.has_tensors and x.input is not None and len(x.input.kept(kept)) == 0]
    return [name for x in unfed for name in (x.name, x.norm) if name]


def zero_removed(model: nn.Module, layers: Sequence[Layer], kept: Kept) -> None:
    """Make layers whose inputs are all removed give zeros; their parameters are frozen, so that training keeps that."""
    for name in layers_without_input(layers, kept):
        module = model.get_submodule(name)
        for key, parameter in module.named_parameters(recurse=False):
            _set(module, key, torch.zeros_like(parameter))
            module._parameters[key].requires_grad_(False)  # type: ignore[union-attr]
        mean = module._buffers.get("running_mean")
        if mean is not None:
            _set(module, "running_mean", torch.zeros_like(mean))


def randomise_removed(model: nn.Module, layers: Sequence[Layer], kept: Kept) -> None:
    """Put noise where `zero_removed` has put zeros: an output that does not change does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    for name in layers_without_input(layers, kept):
        module = model.get_submodule(name)
        for key, parameter in module.named_parameters(recurse=False):
            _set(module, key, torch.randn(parameter.shape, generator=generator).to(parameter))


def shallow_copy(model: nn.Module) -> nn.Module:
    """A copy whose tensors share memory with the original's, for use where they are only read or replaced.

    >>> layer = nn.Linear(2, 2)
    >>> shallow_copy(layer).weight.data_ptr() == layer.weight.data_ptr()
    True
    """
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    shared |= {id(b): b.detach() for b in model.buffers()}
    return copied(model, shared)


def own_tensors(model: nn.Module, layer: Layer) -> dict[str, Tensor]:
    """A layer's own parameters and buffers by key, including those of a parametrization of its weights."""
    if isinstance(layer.kind, BareParameter):
        key = layer.name.rpartition(".")[2]
        return {key: getattr(holder_of(model, layer, key), key).detach()}
    found: dict[str, Tensor] = {}
    for prefix, module in model.get_submodule(layer.name).named_modules():
        if prefix == "" or isinstance(module, ParametrizationList):
            own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            found |= {f"{prefix}.{key}" if prefix else key: tensor.detach() for key, tensor in own.items()}
    return found


def weight_of(model: nn.Module, layer: Layer) -> Tensor:
    """The weights that a layer multiplies with, ``[out, in, …]``."""
    if isinstance(layer.kind, BareParameter):
        (weight,) = own_tensors(model, layer).values()
        inputs_first = layer.kind.dim == 1
    else:
        module: Any = model.get_submodule(layer.name)
        weight = module.weight.detach()
        inputs_first = isinstance(module, TRANSPOSED) and not layer.by_group
    return weight.transpose(0, 1) if inputs_first else weight


def holder_of(model: nn.Module, layer: Layer, key: str) -> nn.Module:
    """The module that holds a layer's tensor."""
    if isinstance(layer.kind, BareParameter):
        return model.get_submodule(layer.name.rpartition(".")[0])
    return model.get_submodule(layer.name).get_submodule(key.rpartition(".")[0])


def axes_of(model: nn.Module, layer: Layer, key: str, shape: tuple[int, ...]) -> list[Axis | None]:
    """For every dimension of a layer's tensor the axis that it follows, if any."""
    axes: list[Axis | None] = [None] * len(shape)
    if isinstance(layer.kind, BareParameter):
        axes[layer.kind.dim] = layer.output
        if layer.input is not None:
            axes[1 - layer.kind.dim] = layer.input
    elif shape:
        swapped = len(shape) > 1 and isinstance(model.get_submodule(layer.name), TRANSPOSED) and not layer.by_group
        sides = [layer.input, layer.output] if swapped else [layer.output, layer.input]
        axes[: min(2, len(shape))] = sides[: len(shape)]
    # a tensor of length 1 is shared by all channels
    return [a if a is not None and len(a) == n else None for a, n in zip(axes, shape, strict=True)]


def _set(module: nn.Module, key: str, tensor: Tensor) -> None:
    if key in module._parameters:
        old = module._parameters[key]
        module._parameters[key] = nn.Parameter(tensor, requires_grad=old is not None and old.requires_grad)
    else:
        module._buffers[key] = tensor


def _set_widths(module: Any, layer: Layer, width: int | None) -> None:
    """Set the module's attributes to the widths of its tensors."""
    if isinstance(module, CONVS):
        before = module.out_channels // module.groups
        module.out_channels = module.weight.shape[0]
        if layer.by_group:
            module.groups = module.out_channels // before
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, TRANSPOSED):
        if layer.by_group:  # depthwise: as many groups as channels
            module.groups = module.weight.shape[0]
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase) and width is not None:
        module.num_features = width
    elif isinstance(module, nn.GroupNorm) and width is not None:
        if layer.by_group:
            module.num_groups = width // (module.num_channels // module.num_groups)
        module.num_channels = width
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and width is not None:
        module.normalized_shape = (width, *module.normalized_shape[1:])
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
