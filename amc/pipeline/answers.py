"""Where the delivered network answers differently from the original: counts, confusion, and the commonest changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from amc.task import Task, batches, nested
from amc.task.splits import Split, sample

SAMPLES = 2048
"""Number of compared samples of the test split, at most."""
CLASSES, PAIRS = 20, 12
"""Largest number of classes with whole confusion matrices, and number of listed changes."""


def compare_answers(task: Task, model: nn.Module, seed: int = 0) -> dict[str, Any] | None:
    """The entry in result.json about ``model`` beside the original; None if the task has no classes as labels.

    ``seed`` chooses the samples of the test split.
    """
    answers = _answers(task, task.model, model, sample(task.splits.test, SAMPLES, seed))
    if answers is None:
        return None
    labels, original, final, classes = answers
    right, kept = original == labels, final == labels
    changes = Counter(
        (label, before, after)
        for label, before, after in zip(labels.tolist(), original.tolist(), final.tolist(), strict=True)
        if before != after
    )
    return {
        "split": "test",
        "samples": len(labels),
        "both_right": int((right & kept).sum()),
        "lost": int((right & ~kept).sum()),
        "gained": int((~right & kept).sum()),
        "both_wrong": int((~right & ~kept).sum()),
        "changed": int((original != final).sum()),
        "pairs": [
            {"label": label, "original": before, "final": after, "count": count}
            for (label, before, after), count in sorted(changes.items(), key=lambda item: (-item[1], item[0]))[:PAIRS]
        ],
        "confusion": _confusions(labels, original, final, classes) if classes <= CLASSES else None,
    }


def _answers(
    task: Task, first: nn.Module, second: nn.Module, split: Split
) -> tuple[Tensor, Tensor, Tensor, int] | None:
    """Labels and both networks' answers ``[N]``, and the number of classes."""
    found, classes = list[Tensor](), 0
    with torch.inference_mode():
        for inputs, targets in batches(split, task.batch):
            if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
                return None
            outputs = [nested.call(network, nested.to(inputs, task.device)) for network in (first, second)]
            logits = [task.objective.vectors(one) for one in outputs]
            if any(one is None or len(one) != len(targets) for one in logits):
                return None
            named = [one.argmax(1).cpu() for one in logits if one is not None]
            classes = max(classes, *(one.shape[1] for one in logits if one is not None), int(targets.max()) + 1)
            found.append(torch.stack([targets.long().cpu(), *named]))
            if int(targets.min()) < 0:
                return None
    labels, original, final = torch.cat(found, 1)
    return labels, original, final, classes


def _confusions(labels: Tensor, original: Tensor, final: Tensor, classes: int) -> dict[str, list[list[int]]]:
    return {"original": _confusion(labels, original, classes), "final": _confusion(labels, final, classes)}


def _confusion(labels: Tensor, answers: Tensor, classes: int) -> list[list[int]]:
    """Counts ``[label][answer]``."""
    places = torch.bincount(labels * classes + answers, minlength=classes**2)
    counts: list[list[int]] = places.view(classes, classes).tolist()
    return counts
