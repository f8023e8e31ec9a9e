"""Cutting a network's tensors along the axes that sites own.

A ``Dresser`` puts any policy's tensors onto one and the same module, so that evaluating thousands of policies
copies no module; pruning for real is dressing a deep copy once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amc.channels import Axis, Kept, Layer


class Dresser:
    """Sets the tensors of ``model`` to those of a policy. ``model`` is changed and must be nobody else's."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model = model
        # BatchNorms are set even where no site cuts them: reconstruction and recalibration change their statistics
        self._cut = [x for x in layers if x.output is not None or x.input is not None or x.kind == "norm"]
        self._source = {
            layer.name: _own_tensors(_holder(model, layer.name)[0], layer.name, layer.kind) for layer in self._cut
        }

    def dress(self, kept: Kept, solved: Mapping[str, Mapping[str, Tensor]] | None = None) -> None:
        """Cut every tensor to ``kept``.

        ``solved`` gives tensors by layer that replace the original ones: already cut along the input,
        still whole along the output.
        """
        solved = solved or {}
        for layer in self._cut:
            module, _ = _holder(self._model, layer.name)
            outputs = _positions(layer.output, kept, module)
            inputs = _positions(layer.input, kept, module)
            ready = solved.get(layer.name, {})
            for key, tensor in self._source[layer.name].items():
                new = ready.get(key, tensor)
                if layer.kind.startswith("parameter"):
                    new = new if outputs is None else new.index_select(int(layer.kind.split(":")[1]), outputs)
                elif new.ndim:
                    if inputs is not None and key not in ready and new.ndim > 1:
                        new = new.index_select(1, inputs)
                    if outputs is not None and new.shape[0] > 1:
                        new = new.index_select(0, outputs)
                _set(module, key, new)
            _set_widths(module, layer.depthwise)


def _positions(axis: Axis | None, kept: Kept, module: nn.Module) -> Tensor | None:
    if axis is None:
        return None
    device = next(iter([*module.parameters(recurse=False), *module.buffers(recurse=False)])).device
    return torch.from_numpy(axis.kept(kept)).to(device)


def _holder(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of that name; for a bare parameter the module that holds it, and its key."""
    try:
        return model.get_submodule(name), ""
    except AttributeError:
        parent, _, key = name.rpartition(".")
        return model.get_submodule(parent), key


def _own_tensors(module: nn.Module, name: str, kind: str) -> dict[str, Tensor]:
    if kind.startswith("parameter"):
        key = name.rpartition(".")[2]
        return {key: getattr(module, key).detach()}
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {key: tensor.detach() for key, tensor in own.items()}


def _set(module: nn.Module, key: str, tensor: Tensor) -> None:
    if key in module._parameters:
        old = module._parameters[key]
        module._parameters[key] = nn.Parameter(tensor, requires_grad=old is not None and old.requires_grad)
    else:
        module._buffers[key] = tensor


def _set_widths(module: Any, depthwise: bool) -> None:
    """Make the module's attributes say what its tensors are."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        module.out_channels = module.weight.shape[0]
        if depthwise:
            module.in_channels = module.groups = module.out_channels
        else:
            module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        tensor = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = tensor.shape[0]
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
