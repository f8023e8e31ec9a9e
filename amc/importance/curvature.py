"""The diagonal of the loss's Hessian, by every weight that holds channels of a site.

For random signs v, E[v ⊙ Hv] is the diagonal of H (Bekas et al. 2007; Hutchinson 1990): off-diagonal terms
v_i v_j H_ij have mean 0, and their variance falls with the number of samples, as every batch of samples draws signs of
its own. Hv is the derivative of gᵀv, a backward pass through a backward pass (Pearlmutter 1994).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amc.graph.sites import Graph
from amc.importance.group import slots
from amc.importance.statistics import is_parameter, no_derivatives, trainable_copy
from amc.runtime.onednn import SafeGradients
from amc.task import Task, batches, nested
from amc.task.splits import sample

IMAGES, BATCH = 512, 16
PROBES = 4
"""Sign vectors for each batch."""


def collect_curvature(task: Task, graph: Graph) -> dict[str, Tensor]:
    """Mean second derivative of the loss by every weight, by the weight's name. Raises ConfigError."""
    model = trainable_copy(task.model)
    names = dict.fromkeys(slot.tensor for site in range(len(graph.sites)) for slot in slots(graph, model, site))
    weights = {name: model.get_parameter(name) for name in names if is_parameter(model, name)}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    samples = sample(task.splits.calibration, IMAGES)
    try:
        for inputs, targets in batches(samples, min(BATCH, task.batch)):
            with torch.enable_grad(), SafeGradients(model).active():
                outputs = nested.call(model, nested.to(inputs, task.device))
                loss = task.objective.loss(outputs, nested.to(targets, task.device)).sum()
            for name, found in zip(weights, diagonal(loss, list(weights.values()), generator, PROBES), strict=True):
                sums[name] += found / len(samples)
    except RuntimeError as error:
        raise no_derivatives(error) from error
    return {name: found.cpu() for name, found in sums.items()}


def diagonal(loss: Tensor, weights: Sequence[Tensor], generator: torch.Generator, probes: int) -> list[Tensor]:
    """An estimate of the diagonal of the loss's Hessian, shaped as the weights; exact where the Hessian is diagonal.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> diagonal((3 * w[0] ** 2 + w[1] ** 3).sum(), [w], torch.Generator(), 1)[0].tolist()
    [6.0, 12.0]
    """
    slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    found = [torch.zeros_like(weight) for weight in weights]
    for _ in range(probes):
        signs = [1 - 2 * torch.randint(2, w.shape, generator=generator).to(w) for w in weights]
        along = [(g * v).sum() for g, v in zip(slopes, signs, strict=True) if g is not None and g.requires_grad]
        if not along:  # the loss is linear in all of them
            break
        products = torch.autograd.grad(torch.stack(along).sum(), weights, retain_graph=True, allow_unused=True)
        for index, product in enumerate(products):
            if product is not None:
                found[index] += signs[index] * product.detach() / probes
    return found
