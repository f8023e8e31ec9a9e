"""The Python API: a model, data and a budget in; a smaller network out.

::

    result = amc.compress(model, train=loader, test=test_loader, budget=amc.Budget(flops=0.5))
    result.model, result.policy, result.evaluations
    result.save("bundle")
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from amc.budget import Budget
from amc.bundle import load_into
from amc.config import BudgetConfig, Config
from amc.errors import DataError
from amc.monitor import Monitor
from amc.run import Result, compress_task, pick_device
from amc.task import Objective, make_task
from amc.task.data import DatasetSplit, Splits, digest, split_members
from amc.task.metrics import CLASSIFICATION

load = load_into


def compress(
    model: nn.Module,
    train: Any,
    test: Any,
    budget: Budget,
    search: Any = None,
    *,
    config: Config | None = None,
    objective: Objective = CLASSIFICATION,
    name: str = "model",
    out: str | Path | None = None,
    monitor: Monitor | None = None,
) -> Result:
    """Compress ``model`` to ``budget``. The model itself is not changed.

    ``train``, ``search`` and ``test`` are map-style datasets of (input, target), or DataLoaders over them, of
    which the dataset and the collate function are used. Calibration images are held out of ``train``, and so
    is the search split where none is given. ``test`` is read once, at the end. ``config`` sets everything else;
    its model, data and budget are not used. Without ``out`` the bundle is in a temporary folder.
    """
    config = config or Config()
    limits = {field: None if v is None else str(v) for field, v in vars(budget).items()}
    config = replace(config, budget=BudgetConfig(**limits))
    splits = _splits(train, search, test, config)
    import copy

    task = make_task(name, copy.deepcopy(model), splits, pick_device(config.device), objective)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="amc-"))
    return compress_task(task, config, folder, monitor)


def _splits(train: Any, search: Any, test: Any, config: Config) -> Splits:
    sources = {"train": _source(train, "train"), "test": _source(test, "test")}
    count = len(sources["train"][0])
    calibration = min(config.data.calibration, count // 4)
    if search is None:
        sizes = [calibration, min(config.data.search, count // 4)]
        held, chosen, rest = split_members(count, sizes, config.seed)
        sources["search"] = sources["train"]
    else:
        held, rest = split_members(count, [calibration], config.seed)
        sources["search"] = _source(search, "search")
        chosen = split_members(len(sources["search"][0]), [config.data.search], config.seed)[0]
    members = {
        "train": rest,
        "calibration": held,
        "search": chosen,
        "test": torch.arange(len(sources["test"][0])),
    }
    sources["calibration"] = sources["train"]
    for part, indices in members.items():
        if len(indices) < 2:
            raise DataError(f"the {part} split has {len(indices)} samples: too few.")
    parts = {part: DatasetSplit(*sources[part], members[part]) for part in members}
    record = {part: {"count": len(m), "digest": digest(m)} for part, m in members.items()}
    return Splits(
        parts["train"],
        parts["calibration"],
        parts["search"],
        parts["test"],
        classes=None,
        source="the caller's data",
        provenance={"seed": config.seed, **record},
    )


def _source(data: Any, part: str) -> tuple[Any, Any]:
    """A map-style dataset and how its samples are put into a batch."""
    dataset, collate = (data.dataset, data.collate_fn) if isinstance(data, DataLoader) else (data, default_collate)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{part} is a {type(data).__name__}, but must be a map-style dataset, or a DataLoader over one."
        )
    return dataset, collate
