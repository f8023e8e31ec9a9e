"""The contract of preparations, tried on a small network: `check_preparation`, published in `amc.testing`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from amc.config import DataConfig
from amc.graph import build_graph
from amc.task import Task, load_data, make_task
from amc.train.checkpoint import save
from amc.train.plan import Plan
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier, prepared
from amc.train.trainer import Trainer, train

PLAN = Plan(steps=6, lr=0.05, batch_size=32, weight_decay=5e-4, distillation=0.0, temperature=4.0, seed=7)


def check_preparation(name: str, settings: Mapping[str, Any] | None = None) -> None:
    """Raise AssertionError, saying why, unless a preparation can be resumed, ranks channels, and leaves no trace.

    ``name`` is one of `amc list preparations`, or ``file.py:function``, and ``settings`` are its own. Raises
    ConfigError where it fails.
    """
    task = example_task()
    keys = {key: tuple(value.shape) for key, value in task.model.state_dict().items()}
    model, scores = _trained(name, settings or {}, task)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == keys, f"{name} leaves a network with other tensors"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules()), f"{name} leaves hooks"
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()), f"{name} gives NaN"
    sites = {site.name: site.channels for site in build_graph(task.model, task.example).sites}
    assert scores, f"{name} ranks no channels"
    for site, own in scores.items():
        assert site in sites, f"{name} ranks '{site}', which is no site"
        assert tuple(own.shape) == (sites[site],), f"{name} gives {tuple(own.shape)} scores for '{site}'"
        right = bool(torch.isfinite(own).all()) and bool((own >= 0).all())
        assert right, f"{name} gives scores of '{site}' that are not finite, or below 0"
    again, rescored = _trained(name, settings or {}, task, stop=PLAN.steps // 2)
    assert _same(model.state_dict(), again.state_dict()), f"{name} cannot be resumed: it ends with other weights"
    assert _same(scores, rescored), f"{name} cannot be resumed: it ends with other scores"


def example_task() -> Task:
    """A small untrained network with BatchNorm for digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip
    return make_task("example", model.eval(), load_data(DataConfig()), torch.device("cpu"))


def _trained(
    name: str, settings: Mapping[str, Any], task: Task, stop: int | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network and the scores after a training, which is stopped after so many steps and taken up again."""
    with TemporaryDirectory(prefix="amc-") as folder:
        checkpoint = Path(folder, "checkpoint.pt")
        if stop is not None:
            own, hook = _begin(name, settings, task)
            trainer = Trainer(own.model, own, PLAN, None, [hook])
            for step in range(stop):
                trainer.step(step)
            save(checkpoint, stop, own.model, trainer.optimizer, PLAN, [hook])
        own, hook = _begin(name, settings, task)
        model = train(own.model, own, PLAN, None, checkpoint, hooks=[hook])
    hook.finish(model)
    return model, dict(hook.scores(model))


def _begin(name: str, settings: Mapping[str, Any], task: Task) -> tuple[Task, Sparsifier]:
    own = replace(task, model=copy.deepcopy(task.model))
    return own, prepared(name, settings, DenseNetwork(own, build_graph(own.model, own.example)), PLAN)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
