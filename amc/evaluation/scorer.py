"""Per-sample loss and metric of a network on the search split. An evaluation spends nearly all of its time here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from amc.evaluation.settings import SearchObjective
from amc.graph.surgery import shallow_copy
from amc.reconstruction.fold import NormFolder
from amc.task import Task, batches, nested
from amc.task.splits import hold

BLOCK = 125
"""Samples per forward pass, and between two decisions of a race; with more, activations exceed a CPU's cache."""


class SearchSamples:
    """The search split, prepared for repeated evaluation: on the device, in blocks, with the original's logits."""

    def __init__(self, task: Task, folder: NormFolder) -> None:
        """``folder`` folds BatchNorms into layers during evaluation."""
        self.task, self.folder = task, folder
        self.split = hold(task.splits.search, task.device)
        self.block = min(BLOCK, task.batch)

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def original_logits(self) -> Tensor:
        """The original's logits ``[N, C]``, float32."""
        logits, device, original = self.task.objective.logits, self.task.device, shallow_copy(self.task.model)
        assert logits is not None
        with torch.inference_mode(), self.folder.folded(original):
            passes = batches(self.split, self.block)
            return torch.cat([logits(nested.call(original, nested.to(x, device))).float() for x, _ in passes])


class Scorer:
    """Scores networks by one objective of the search."""

    def __init__(self, samples: SearchSamples, objective: SearchObjective) -> None:
        self._samples, self._objective = samples, objective

    def __len__(self) -> int:
        return len(self._samples)

    def folded(self, network: nn.Module) -> AbstractContextManager[object]:
        """A context in which the BatchNorms of ``network`` are folded into the layers before them."""
        return self._samples.folder.folded(network)

    def read(self, network: nn.Module, half: bool = False) -> Tensor:
        """Loss and metric of every sample ``[2, N]``, float64. ``half``: forward passes use bfloat16."""
        with self.folded(network):
            return torch.cat(list(self.blocks(network, half)), 1)

    def blocks(self, network: nn.Module, half: bool, indices: Tensor | None = None) -> Iterator[Tensor]:
        """Yield loss and metric per sample, float64 ``[2, B]``, in blocks of the samples ``indices [n]``, or of all."""
        indices = torch.arange(len(self)) if indices is None else indices
        task = self._samples.task
        autocast = torch.autocast(task.device.type, torch.bfloat16, enabled=half)
        for block in torch.split(indices, self._samples.block):
            inputs, targets = self._samples.split.fetch(block)
            with torch.inference_mode():
                with autocast:
                    outputs = nested.call(network, nested.to(inputs, task.device))
                outputs, truth = tree_map_only(Tensor, _single, outputs), nested.to(targets, task.device)
                losses = self._logit_mse(outputs, block)
                losses = task.objective.loss(outputs, truth) if losses is None else losses
                yield torch.stack([losses, task.objective.metric(outputs, truth)]).double().cpu()

    @cached_property
    def compares_logits(self) -> bool:
        """Whether losses are distances from the original's outputs, so that the original's own losses are 0."""
        return compares_logits(self._samples.task, self._objective)

    def _logit_mse(self, outputs: Any, indices: Tensor) -> Tensor | None:
        """Mean squared difference of the logits from the original's, per sample ``[B]``.

        None if the objective is the loss, or there is not one vector of logits per sample: logits of every pixel would
        not fit into memory.
        """
        logits = self._samples.task.objective.vectors(outputs) if self._objective == "logit_mse" else None
        return None if logits is None else (logits - self._samples.original_logits[indices]).square().mean(1)


def compares_logits(task: Task, objective: SearchObjective) -> bool:
    """Whether the objective of the search is a distance from the original's outputs, which is 0 for the original."""
    if task.objective.projection is not None:  # its loss is a distance from the original's outputs
        return True
    if objective != "logit_mse":
        return False
    with torch.inference_mode():
        inputs = nested.to(task.splits.search.fetch(torch.arange(1))[0], task.device)
        return task.objective.vectors(nested.call(task.model, inputs)) is not None


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
