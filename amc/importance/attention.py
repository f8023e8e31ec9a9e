"""Attention statistics (Yamamoto & Maeno 2018, PCAS, arXiv:1806.05382).

A small module looks at each site's feature maps and scales them by an attention in (0, 1) for every channel (section
3.1): z = mean over positions, a = σ(W₂ ReLU(W₁ z)), with a quarter of the channels between. The modules alone are
trained, the network's own weights are frozen; a channel's importance is then its mean attention over the samples
(equation 4).

Deviations: the paper has a module behind every convolution, and prunes in several rounds; here there is one for every
place where a site's channels are read, whose attentions are averaged, and one round. `STEPS` steps of Adam on the
calibration split take the place of the paper's epochs on the training set.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.graph.sites import Graph
from amc.importance.criterion import Criterion, Need, required
from amc.importance.group import SiteView
from amc.importance.statistics import (
    Place,
    by_channel,
    derivatives,
    places,
    trainable_copy,
    watching,
)
from amc.task import Task, batches, nested
from amc.task.splits import sample

STEPS, BATCH, RATE = 100, 32, 0.01
IMAGES = 512
_NARROWER = 4  # times fewer channels between the two matrices


class Attention(nn.Module):
    """Scales the channels of feature maps ``[N, C, …]``, or ``[N, …, C]`` of a linear layer."""

    def __init__(self, channels: int, last: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.last, inner = last, max(1, channels // _NARROWER)
        self.narrow = nn.Parameter(torch.randn(inner, channels, generator=generator) * (2 / channels) ** 0.5)
        self.widen = nn.Parameter(torch.zeros(channels, inner))
        self.total, self.samples = torch.zeros(channels, dtype=torch.float64), 0

    def forward(self, x: Tensor) -> Tensor:
        """The maps, scaled. At first every attention is ½, and maps are scaled by 2 a to begin as they were."""
        first = x if not self.last else x.movedim(-1, 1)
        squeezed = first.flatten(2).mean(2) if first.ndim > 2 else first
        attention = torch.sigmoid(torch.relu(squeezed @ self.narrow.T) @ self.widen.T)
        self.total += attention.detach().sum(0).double().cpu()
        self.samples += len(x)
        shaped = attention.reshape(*attention.shape, *[1] * (first.ndim - 2))
        return 2 * x * (shaped.movedim(1, -1) if self.last else shaped)


def collect_attention(task: Task, graph: Graph) -> dict[str, Tensor]:
    """The mean attention of every channel ``[C]``, by the site's number. Raises ConfigError without derivatives."""
    model, generator = trainable_copy(task.model).requires_grad_(False), torch.Generator().manual_seed(0)
    where = [place for place in places(graph, model) if place.reads]
    modules: dict[str, Attention] = {}
    for place in where:
        if place.module not in modules:
            linear = isinstance(model.get_submodule(place.module), nn.Linear)
            modules[place.module] = Attention(place.length, linear, generator).to(task.device)

    def see(name: str, reads: bool, tensor: Tensor) -> Tensor:
        own = modules[name]
        fits = tensor.ndim >= 2 and tensor.shape[-1 if own.last else 1] == own.narrow.shape[1]
        scaled: Tensor = own(tensor) if fits else tensor
        return scaled

    with watching(model, where, see):
        _train(task, model, modules)
        for own in modules.values():
            own.total, own.samples = torch.zeros_like(own.total), 0
        with torch.no_grad():
            for inputs, _ in batches(sample(task.splits.calibration, IMAGES), min(BATCH, task.batch)):
                nested.call(model, nested.to(inputs, task.device))
    return _means(graph, where, modules)


def _train(task: Task, model: nn.Module, modules: Mapping[str, Attention]) -> None:
    """Lower the loss by the attentions' weights alone."""
    weights = [w for own in modules.values() for w in own.parameters()]
    optimizer = torch.optim.Adam(weights, RATE)
    split = task.splits.calibration
    for step in range(STEPS):
        drawn = torch.randint(len(split), (min(BATCH, len(split)),), generator=torch.Generator().manual_seed(step))
        inputs, targets = split.fetch(drawn)
        with torch.enable_grad():
            outputs = nested.call(model, nested.to(inputs, task.device))
            loss = task.objective.loss(outputs, nested.to(targets, task.device)).mean()
        for weight, slope in zip(weights, derivatives(loss, weights), strict=True):
            weight.grad = slope
        optimizer.step()


def _means(graph: Graph, where: list[Place], modules: Mapping[str, Attention]) -> dict[str, Tensor]:
    """Of every site the mean over positions and places."""
    sums: dict[int, Tensor] = {}
    for place in where:
        own = modules[place.module]
        if own.samples:
            values = (own.total / own.samples)[place.positions]
            both = torch.stack([values, torch.ones_like(values)], 1)
            found = by_channel(both, place.channels, graph.sites[place.site].channels)
            sums[place.site] = sums[place.site] + found if place.site in sums else found
    return {str(site): own[:, 0] / own[:, 1] for site, own in sums.items()}


def pcas(site: SiteView) -> Tensor:
    """Mean attention of each channel ``[C]``."""
    return required(site.attention, "feature maps that a convolution or linear layer reads")


CRITERION = Criterion(
    "pcas",
    "mean attention of small modules that are trained to scale channels",
    "Yamamoto & Maeno 2018, PCAS, arXiv:1806.05382",
    pcas,
    frozenset({Need.ATTENTION}),
    dead_is_least=False,
)
