"""What identifies a result in the cache: its key covers all that it depends on.

That is the network's weights, structure and outputs, the samples themselves, the settings, the code of this package,
the libraries, and the files of plug-ins.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.config import Config
from amc.evaluation.settings import EvaluationSettings, SearchObjective
from amc.importance import Need, criterion_files, is_search, load_criterion
from amc.operators.policy import fingerprint
from amc.operators.registry import beyond_widths, load_operators
from amc.runtime.hashing import tensors_digest
from amc.runtime.plugins import file_digests
from amc.runtime.provenance import code_version, library_versions
from amc.task import Split, Task, batches, nested
from amc.task.nested import Nested


class Keys:
    """The keys of one run's results."""

    def __init__(self, task: Task, config: Config) -> None:
        self._task, self._config = task, config

    @cached_property
    def basis(self) -> dict[str, Any]:
        """The network, the code and the libraries: the part of the key that all results have."""
        task = self._task
        outputs, _ = self._outputs
        return {
            "weights": fingerprint(task.model),
            "structure": hashlib.sha256(repr(task.model).encode()).hexdigest(),
            "outputs": digest(outputs),
            "device": task.device.type,
            "code": code_version(),
            "plugins": file_digests([self._config.model.name, self._config.data.source]),
            "libraries": library_versions(),
        }

    @cached_property
    def _outputs(self) -> tuple[Any, Nested]:
        """The network's outputs for the first few samples, and their targets."""
        task = self._task
        inputs, targets = task.splits.search.fetch(torch.arange(min(8, len(task.splits.search))))
        with torch.inference_mode():
            return nested.call(task.model, nested.to(inputs, task.device)), nested.to(targets, task.device)

    @cached_property
    def _objective(self) -> list[Any]:
        """The objective: its name, its file, and its losses and metrics of the first few samples."""
        objective, named = self._task.objective, self._config.objective
        found = [digest(objective.loss(*self._outputs)), digest(objective.metric(*self._outputs))]
        return [objective.name, named, file_digests([named]), *found]

    @cached_property
    def _calibration(self) -> str:
        return split_digest(self._task.splits.calibration)

    @cached_property
    def _search(self) -> str:
        return split_digest(self._task.splits.search)

    def exported(self) -> dict[str, Any]:
        """Of the original's ONNX file."""
        return {**self.basis, "example": digest(self._task.example), "onnx": library_versions(("onnx", "onnxscript"))}

    def calibrated(self) -> dict[str, Any]:
        """Of what is computed from the calibration split."""
        return {**self.basis, "calibration": self._calibration, "seed": self._config.seed}

    def statistics(self) -> dict[str, Any]:
        """Of what criteria collect with the loss, such as gradients."""
        return {**self.calibrated(), "task": self._objective}

    def ordered(self) -> dict[str, Any]:
        """Of the orders of channels."""
        name = self._config.search.criterion
        found = {**self.calibrated(), "criterion": [name, criterion_files(name)]}
        if is_search(name):
            search = self._config.search
            return {**found, "task": self._objective, "compared": [search.objective, search.least_share]}
        uses_loss = load_criterion(name).needs & {Need.GRADIENTS, Need.CURVATURE}
        return {**found, "task": self._objective} if uses_loss else found

    def _operators(self) -> dict[str, Any]:
        """The operators, if some do more than change widths, because the sites depend on them."""
        named = self._config.search.operator_names or ()
        if not named or not beyond_widths(load_operators(named)):
            return {}
        return {"operators": [list(named), file_digests(named)]}

    def site_errors(self, objective: SearchObjective) -> dict[str, Any]:
        """Of the errors of sites."""
        found = {**self.ordered(), "task": self._objective, "objective": objective}
        return {**found, **self._operators()}

    def scored(self, settings: EvaluationSettings) -> dict[str, Any]:
        """Of the scores of policies."""
        return {
            **self.ordered(),
            **self._operators(),
            "task": self._objective,
            "search": self._search,
            "settings": settings.to_dict(),
        }

    def original_score(self, part: str, split: Split) -> dict[str, Any]:
        """Of the original's loss and metric on a split."""
        return {
            **self.basis,
            "task": self._objective,
            part: self._search if part == "search" else split_digest(split),
        }


def split_digest(split: Split) -> str:
    """SHA-256 over all inputs and targets of a split."""
    sha = hashlib.sha256()
    for batch in batches(split, 250):
        sha.update(digest(batch).encode())
    return sha.hexdigest()


def digest(tensors: Any) -> str:
    """SHA-256 over all tensors of a nested structure, in order."""
    return tensors_digest(("", leaf) for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))
