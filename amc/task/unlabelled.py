"""Tasks without labels: the targets are the original's outputs, and the metric is agreement with the original.

========================  ==========================================================================================
outputs                   loss and metric per sample
========================  ==========================================================================================
one tensor ``[N, K]``,    cross entropy with the original's class; 1 if the largest logit is that of the original
K ≥ 2
anything else             squared error of all outputs as a share of their variance over samples; 1 minus that, at
                          least 0 (the coefficient of determination, R²)
``--objective cosine``    squared error as above; cosine of the angle between all outputs and the original's, at least 0
========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc.errors import ModelError
from amc.task import nested
from amc.task.metrics import AGREEMENT, CLASSIFICATION, COSINE, Objective
from amc.task.nested import Nested
from amc.task.splits import HOLD_BYTES, Split, Splits

BLOCK = 64
"""Samples per forward pass of the original."""
SCALE_SAMPLES = 64
"""Samples of the search split from which the variance of outputs is estimated."""


@dataclass(frozen=True, eq=False)
class OriginalTargets:
    """A split without labels, with the original's outputs as targets; augmented inputs have their own.

    The original runs once for every sample that is not augmented, as long as all outputs fit into `HOLD_BYTES`: a
    search reads the same samples for every policy.
    """

    split: Split
    original: nn.Module
    """In evaluation mode."""
    device: torch.device
    _known: dict[int, Nested] = field(default_factory=dict, repr=False)
    """Targets ``[1, ...]`` by the sample's index."""

    def __len__(self) -> int:
        return len(self.split)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        inputs, _ = self.split.fetch(indices, augment)
        if augment is not None:
            return inputs, self._outputs(inputs)
        places = indices.tolist()
        new = [row for row, place in enumerate(places) if place not in self._known]
        found = self._outputs(nested.mapped(lambda leaf: leaf[new], inputs)) if new else ()
        if len(new) == len(places) and not self._fit(found, len(new)):
            return inputs, found
        for row, place in enumerate(new):
            self._known[places[place]] = nested.mapped(lambda leaf, a=row: leaf[a : a + 1], found)  # type: ignore[misc]
        return inputs, nested.joined([self._known[place] for place in places])

    def _fit(self, outputs: Nested, count: int) -> bool:
        """Whether the outputs of all samples fit into memory, by those of ``count``."""
        size = sum(leaf.numel() * leaf.element_size() for leaf in nested.leaves(outputs))
        return size * len(self) <= HOLD_BYTES * count

    def _outputs(self, inputs: Nested) -> Nested:
        """The original's outputs, on the device of the inputs."""
        count = nested.length(inputs)
        found = []
        with torch.no_grad():
            for start in range(0, count, BLOCK):
                stop = min(start + BLOCK, count)
                block = nested.mapped(lambda leaf, a=start, b=stop: leaf[a:b].to(self.device), inputs)  # type: ignore[misc]
                found.append(_targets(nested.call(self.original, block), stop - start))
        return nested.to(nested.joined(found), nested.leaves(inputs)[0].device)


def _targets(outputs: Any, count: int) -> Nested:
    """The outputs, if they are a tensor or a plain structure of them with the batch as the first axis; else their
    tensors that are."""
    plain = nested.nested(outputs)
    if plain is not None and all(leaf.shape[:1] == (count,) for leaf in nested.leaves(plain)):
        return nested.mapped(torch.clone, plain)
    return tuple(leaf.clone() for leaf in compared(outputs, count))


def compared(outputs: Any, count: int) -> list[Tensor]:
    """The floating-point tensors ``[N, ...]`` in a network's outputs."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.shape[:1] == (count,)]


@dataclass(frozen=True, eq=False)
class OutputDistance:
    """Squared errors of outputs as shares of their variance, averaged over the tensors of the output.

    >>> distance = OutputDistance.of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> distance.loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([1.])
    """

    scales: tuple[float, ...]
    """Of every tensor its variance over samples, summed over its elements."""

    @classmethod
    def of(cls, targets: Nested) -> OutputDistance:
        """With the variances in the original's outputs ``[N, ...]``."""
        leaves = compared(targets, nested.length(targets))
        if not leaves:
            raise ModelError("the network's outputs hold no floating-point tensor with one entry for each sample.")
        return cls(tuple(_scale(leaf.flatten(1).double()) for leaf in leaves))

    def loss(self, outputs: Any, targets: Nested) -> Tensor:
        """The distance of every sample ``[N]``."""
        pairs = _pairs(outputs, targets, len(self.scales))
        parts = [
            (a.float() - b.float()).square().flatten(1).sum(1) / scale
            for (a, b), scale in zip(pairs, self.scales, strict=True)
        ]
        return torch.stack(parts).mean(0)

    def metric(self, outputs: Any, targets: Nested) -> Tensor:
        """1 − distance, at least 0 ``[N]``."""
        return (1 - self.loss(outputs, targets)).clamp(0, 1)

    def projection(self, outputs: Any, generator: torch.Generator) -> Tensor:
        """Random signs times the outputs; see `Objective.projection`."""
        leaves = compared(outputs, _count(outputs))
        if len(leaves) != len(self.scales):
            raise RuntimeError("the outputs have another structure")
        parts = []
        for leaf, scale in zip(leaves, self.scales, strict=True):
            signs = 1 - 2 * torch.randint(2, leaf.shape, generator=generator).to(leaf)
            parts.append((2 / (len(leaves) * scale)) ** 0.5 * (signs * leaf).sum())
        return torch.stack(parts).sum()


def _count(outputs: Any) -> int:
    return next(len(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.ndim)


def _pairs(outputs: Any, targets: Nested, count: int) -> Sequence[tuple[Tensor, Tensor]]:
    samples = nested.length(targets)
    pairs = list(zip(compared(outputs, samples), compared(targets, samples), strict=True))
    if len(pairs) != count:
        raise ValueError(f"the outputs hold {len(pairs)} tensors, not {count}")
    return pairs


def _scale(values: Tensor) -> float:
    """Variance over samples of values ``[N, D]``, summed; their mean square if they do not vary."""
    variance = float((values - values.mean(0)).square().sum(1).mean())
    energy = float(values.square().sum(1).mean())
    return variance if variance > 1e-9 * energy else energy or 1.0


def without_labels(
    name: str, model: nn.Module, splits: Splits, device: torch.device, objective: Objective
) -> tuple[Splits, Objective]:
    """Splits whose targets are the original's outputs, and the objective for them.

    ``objective`` is the user's: with `CLASSIFICATION`, the default, it follows from the outputs.
    """
    found = replace(
        splits,
        train=OriginalTargets(splits.train, model, device),
        calibration=OriginalTargets(splits.calibration, model, device),
        search=OriginalTargets(splits.search, model, device),
        test=OriginalTargets(splits.test, model, device),
        classes=None,
    )
    if objective is not CLASSIFICATION and objective is not COSINE:
        return found, replace(objective, without_labels=True)
    few = torch.arange(min(SCALE_SAMPLES, len(splits.search)))
    targets = found.search.fetch(few)[1]
    if not all(bool(torch.isfinite(leaf).all()) for leaf in compared(targets, len(few))):
        raise ModelError(f"{name} returns NaN or infinity on the first samples of the search split.")
    if objective is CLASSIFICATION and isinstance(targets, Tensor) and targets.ndim == 2 and targets.shape[1] > 1:
        return found, AGREEMENT
    distance = OutputDistance.of(targets)
    metric = COSINE.metric if objective is COSINE else distance.metric
    word = COSINE.name if objective is COSINE else "explained variance of outputs"
    return found, Objective(word, distance.loss, metric, None, True, distance.projection)
