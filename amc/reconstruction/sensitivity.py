"""How sensitive the objective of the search is to errors in a layer's outputs, from backward passes of the original.

For an error e of a layer's outputs that is small and independent of the gradient g there, the loss changes by
½ E[(Σ g e)²] ≈ ½ Σ_c E[Σ_positions g_c²] · E[e_c²] to second order, with Fisher's approximation of the Hessian (Theis
et al. 2018, arXiv:1801.05787, for channels; here for the errors that reconstruction leaves).

The mean squared difference of K logits, ‖J e‖² / K to second order, has the same form with the gradient of
√(2 / K) sᵀ logits for random signs s, of which E s sᵀ = 1 (Hutchinson 1990). So has any other squared distance of
outputs, with the projection that its objective gives (`amc.task.Objective.projection`). Most of a confident network's
loss, and so of its gradient, comes from the samples that it gets wrong; its logits count on all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.graph.channels import Layer
from amc.graph.surgery import shallow_copy
from amc.runtime.memory import Memory
from amc.task import Objective, Task, batches, nested
from amc.task.splits import sample

IMAGES, BATCH = 512, 64
_HELD = 4  # memory of a backward pass, in multiples of the layers' outputs


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How sensitive the objective of the search is to errors of one layer."""

    channels: Tensor
    """``[C]``: the objective rises by this times the mean square of an error in channel c."""
    whole: float
    """By how much it rises if all of the output's variance is an error."""


def sensitivities(
    task: Task, layers: Iterable[Layer], memory: Memory | None = None, logit_mse: bool = False
) -> Mapping[str, Sensitivity]:
    """Sensitivity to every convolution and linear layer that is called as a module, over `IMAGES` calibration samples.

    ``logit_mse``: to the mean squared difference of the logits from the original's, where there is one vector of them
    a sample; else to the loss. Empty where that cannot be differentiated, or all gradients are 0.
    """
    names = [layer.name for layer in layers if layer.is_conv_or_linear]
    sums: dict[str, Tensor] = {}
    try:
        model = shallow_copy(task.model).eval().requires_grad_(True)
        size = _batch(model, names, task, memory)
        chosen, value_of = sample(task.splits.calibration, IMAGES), _DifferentiatedValue(task.objective, logit_mse)
        for inputs, targets in batches(chosen, size):
            _add(model, names, task, value_of, inputs, targets, sums)
    except RuntimeError:  # an operator without a derivative, or weights that can have none
        return {}
    found = {}
    for name, (count, squares, first, second) in ((n, s.unbind()) for n, s in sums.items()):
        variance = (second / count - (first / count) ** 2).clamp_min(0)
        gradient = 0.5 * squares / len(chosen)
        found[name] = Sensitivity(gradient, float((gradient * variance).sum()))
    total = sum(s.whole for s in found.values())
    return found if 0 < total < float("inf") else {}


def _batch(model: nn.Module, names: list[str], task: Task, memory: Memory | None) -> int:
    """Samples in a backward pass."""
    if memory is None:
        return BATCH
    outputs = _Outputs()
    with torch.no_grad():
        _call(model, names, nested.to(task.example, task.device), outputs.count)
    return memory.batch(_HELD * outputs.bytes // nested.length(task.example), BATCH)


class _Outputs:
    """The outputs of layers in one forward pass: their size in bytes, or the outputs themselves."""

    def __init__(self) -> None:
        self.bytes = 0
        self.kept: list[tuple[str, Tensor]] = []

    def count(self, name: str, output: Tensor) -> Tensor:
        self.bytes += output.numel() * output.element_size()
        return output

    def keep(self, name: str, output: Tensor) -> Tensor:
        self.kept.append((name, output))
        return output.clone()  # the next operators may write into it


class _DifferentiatedValue:
    """The function of outputs and targets that is differentiated (see the start of this module)."""

    def __init__(self, objective: Objective, logit_mse: bool) -> None:
        self._objective, self._logit_mse = objective, logit_mse
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        objective = self._objective
        logits = objective.vectors(outputs) if self._logit_mse else None
        if logits is None and objective.projection is not None:
            return objective.projection(outputs, self._generator)
        if logits is None:
            return objective.loss(outputs, targets).sum()
        signs = 1 - 2 * torch.randint(2, logits.shape, generator=self._generator).to(logits)
        value: Tensor = (2 / logits.shape[1]) ** 0.5 * (signs * logits).sum()
        return value


def _add(
    model: nn.Module,
    names: list[str],
    task: Task,
    value_of: _DifferentiatedValue,
    inputs: Any,
    targets: Any,
    sums: dict[str, Tensor],
) -> None:
    """Add a batch to ``sums[layer] [4, C]``: number of values, squares of the gradient, values, squares of values."""
    outputs = _Outputs()
    result = _call(model, names, nested.to(inputs, task.device), outputs.keep)
    value = value_of(result, nested.to(targets, task.device))
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(value, [o for _, o in outputs.kept], allow_unused=True)
    for (name, output), gradient in zip(outputs.kept, gradients, strict=True):
        if gradient is None:
            continue
        linear = isinstance(model.get_submodule(name), nn.Linear)
        own, slope = (_by_channel(t.detach(), linear).double() for t in (output, gradient))
        count = torch.full_like(own[0], len(own))
        part = torch.stack([count, (slope**2).sum(0), own.sum(0), (own**2).sum(0)])
        sums[name] = sums[name] + part if name in sums else part


def _by_channel(tensor: Tensor, linear: bool) -> Tensor:
    """All values ``[n, C]``."""
    return tensor.reshape(-1, tensor.shape[-1]) if linear else tensor.transpose(0, 1).flatten(1).T


def _call(model: nn.Module, names: list[str], inputs: Any, see: Callable[[str, Tensor], Tensor]) -> Any:
    """The network's output; ``see(layer, output)`` is called for every layer, and its result replaces the output."""
    handles = [model.get_submodule(n).register_forward_hook(lambda module, args, out, n=n: see(n, out)) for n in names]
    try:
        return nested.call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
