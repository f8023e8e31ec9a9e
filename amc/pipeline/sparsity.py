"""The hooks of ``amc train --sparsify`` and ``--sparse``."""

from __future__ import annotations

from torch import nn

from amc.config import Config, TrainConfig
from amc.errors import ConfigError
from amc.graph import build_graph
from amc.task import Task
from amc.train import (
    DenseNetwork,
    Plan,
    SparseTraining,
    Sparsifier,
    preparation_settings,
    prepared,
    sparse_rule,
)


def check_sparsity(config: Config) -> None:
    """Raise ConfigError for an unknown preparation or rule, or one that cannot be combined with other settings."""
    train, finetune = config.train, config.finetune
    if train.sparsify_options and train.sparsify is None:
        raise ConfigError("--sparsify-option is for a preparation: name one with --sparsify.")
    if train.sparse_options and train.sparse is None:
        raise ConfigError("--sparse-option is for a rule: name one with --sparse.")
    if train.sparse is None and train.density != TrainConfig().density:
        raise ConfigError("--density is for sparse training: name a rule with --sparse.")
    if train.sparsify is not None:
        preparation_settings(train.sparsify, train.sparsify_options)
    if train.sparse is not None:
        sparse_rule(train.sparse, train.sparse_options)
        if train.sparsify is not None:
            raise ConfigError("--sparse cannot be combined with --sparsify: both decide which weights become 0. "
                              "Leave one of the two out.")  # fmt: skip
        if finetune.ema_decay > 0:
            raise ConfigError("--sparse cannot be combined with --ema-decay: an average of weights that change "
                              "places is dense. Leave --ema-decay out.")  # fmt: skip


def make_sparsifier(config: Config, task: Task, plan: Plan) -> Sparsifier | None:
    """The hook that prepares for pruning; None if the configuration has none. Raises ConfigError."""
    name = config.train.sparsify
    if name is None:
        return None
    graph = build_graph(task.model, task.example)
    found = prepared(name, config.train.sparsify_options, DenseNetwork(task, graph), plan)
    if found.changes_forward and config.finetune.checks > 0:
        raise ConfigError(f"--checks cannot be combined with --sparsify {name}: the network that is scored during "
                          "the training is not the final one. Leave --checks out.")  # fmt: skip
    if found.changes_forward and config.train.keep_early > 0:
        raise ConfigError(f"--keep-early cannot be combined with --sparsify {name}: early weights lack its "
                          "gates or have its noise. Leave --keep-early out.")  # fmt: skip
    return found


def make_sparse(config: Config, model: nn.Module) -> SparseTraining | None:
    """Make a network sparse; returns the hook that keeps it so, or None if it stays dense. Raises ConfigError."""
    train = config.train
    if train.sparse is None:
        return None
    rule = sparse_rule(train.sparse, train.sparse_options)
    return SparseTraining(model, rule, train.density, train.densities, config.seed)
