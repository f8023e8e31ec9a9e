"""Policy → score on the search split, before any training. The hot path: nearly all of it is forward passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from amc import nested
from amc.channels import Kept
from amc.graph import BATCH_NORMS, Graph, consumers
from amc.policy import Choice
from amc.reconstruct import Moments, Reconstructor, elements, unexplained
from amc.surgery import Dresser
from amc.task import Task, batches, evaluate
from amc.task.data import hold


@dataclass(frozen=True)
class Score:
    """Mean loss and metric over the search split."""

    loss: float
    metric: float


class Evaluator:
    """Scores policies. One scratch copy of the network wears every policy in turn."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        orders: Sequence[Tensor],
        moments: Mapping[str, Moments],
        reconstruct: bool = True,
        recalibrate: bool = False,
    ) -> None:
        """``orders``: per site its channels, the most important first. ``moments``: of the layers' inputs."""
        self.recalibrate = recalibrate
        self._task, self._graph = task, graph
        self._orders = [o.numpy() for o in orders]
        self._scratch = copy.deepcopy(task.model).requires_grad_(False)
        self._dresser = Dresser(self._scratch, graph.layers)
        self._solve = Reconstructor(graph, task.model, moments) if reconstruct else None
        self._moments = moments
        self._errors: dict[tuple[int, int], float] = {}
        self._search = hold(task.splits.search, task.device)
        self._norms = [m for m in self._scratch.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]

    def kept(self, choice: Choice) -> Kept:
        """The channels that stay at every site, ascending."""
        return [np.sort(order[:width]) for order, width in zip(self._orders, choice, strict=True)]

    def network(self, choice: Choice) -> nn.Module:
        """The pruned network in evaluation mode. It is the scratch copy: the next call changes it."""
        kept = self.kept(choice)
        self._dresser.dress(kept, self._solve(kept) if self._solve else None)
        if self.recalibrate:
            self._recalibrate()
        return self._scratch

    def error(self, site: int, width: int) -> float:
        """What a site loses at a width, all others whole: the unexplained variance summed over its readers."""
        key = (site, width)
        if key not in self._errors:
            self._errors[key] = sum(self._reader_errors(site, width))
        return self._errors[key]

    def _reader_errors(self, site: int, width: int) -> Iterator[float]:
        kept = [np.arange(s.channels) for s in self._graph.sites]
        kept[site] = np.sort(self._orders[site][:width])
        for layer in consumers(self._graph, site):
            moments, weight = self._moments.get(layer.name), self._task.model.get_submodule(layer.name).weight
            if moments is not None and layer.input is not None and isinstance(weight, Tensor):
                positions = torch.from_numpy(layer.input.kept(kept)).to(weight.device)
                yield unexplained(weight.detach().flatten(1), moments, elements(positions, weight[0, 0].numel()))

    def pruned(self, choice: Choice) -> nn.Module:
        """The pruned network as a module of its own, trainable."""
        own = copy.deepcopy(self.network(choice))
        wanted = {name: p.requires_grad for name, p in self._task.model.named_parameters()}
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(wanted[name])
        return own

    def __call__(self, choice: Choice) -> Score:
        """Mean loss and metric of the pruned network over the search split."""
        loss, metric = evaluate(self.network(choice), self._task, self._search)
        return Score(loss, metric)

    def _recalibrate(self) -> None:
        """Statistics of every BatchNorm anew over the calibration split (EagleEye, arXiv:2007.02491)."""
        calibration = self._task.splits.calibration
        size = -(-len(calibration) // -(-len(calibration) // 250))  # batches of one size: each counts alike
        saved = [m.momentum for m in self._norms]
        try:
            for module in self._norms:
                _forget(module)
            with torch.no_grad():
                for inputs, _ in batches(calibration, size):
                    nested.call(self._scratch, nested.to(inputs, self._task.device))
        finally:
            for module, momentum in zip(self._norms, saved, strict=True):
                module.momentum = momentum
                module.eval()


def _forget(module: nn.modules.batchnorm._BatchNorm) -> None:
    """Start a cumulative average of the statistics."""
    if module.running_mean is not None and module.running_var is not None:
        module.running_mean = torch.zeros_like(module.running_mean)
        module.running_var = torch.ones_like(module.running_var)
        module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=module.running_mean.device)
    module.momentum = None
    module.train()
