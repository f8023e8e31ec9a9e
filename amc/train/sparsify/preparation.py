"""Preparations: how a network is trained so that few of its channels matter.

A preparation is a function ``(network, plan) -> Sparsifier``: a hook that adds a penalty, gates or noise to the
training, says how important every channel is at its end, and leaves an ordinary network. Its settings are keyword-only
parameters (`amc.runtime.registry`). A new one is a file beside this one, and a line in the table.

Channels are those of the network's channel groups: what is penalised or switched off together is what pruning removes
together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from amc.errors import ConfigError
from amc.graph.sites import Graph
from amc.runtime.registry import Entry, FunctionEntry, Registry, options
from amc.task import Task
from amc.train.hooks import Hook
from amc.train.plan import Plan


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """A network that is about to be trained, with its channel groups."""

    task: Task
    graph: Graph

    @property
    def model(self) -> nn.Module:
        """The network that is trained, in place."""
        return self.task.model


class Sparsifier(Hook, ABC):
    """What a preparation does during the training, and what it knows of the channels at the end."""

    changes_forward: bool = False
    """Whether the network computes something else during training than it will after `finish`."""

    @abstractmethod
    def scores(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Scores ``[C]`` by site name, higher for more important channels. It may leave out sites."""

    def finish(self, model: nn.Module) -> None:
        """Make the trained network an ordinary one, in place: fold what `changes_forward` into its weights."""


class Preparation(Protocol):
    """Says how a network is prepared in training. ``plan`` is the training that the configuration describes."""

    def __call__(self, network: DenseNetwork, plan: Plan, **settings: Any) -> Sparsifier: ...


PREPARATIONS: Registry[Preparation] = Registry("preparation", "amc.preparations", (
    FunctionEntry("bn-l1", "L1 penalty on the scales of BatchNorms", "amc.train.sparsify.norm_l1:norm_l1",
                  "Liu et al. 2017, Network Slimming, arXiv:1708.06519"),
    FunctionEntry("group-lasso", "L2 norm of all weights of a channel, times √(their number)",
                  "amc.train.sparsify.lasso:group_lasso", "Wen et al. 2016, arXiv:1608.03665"),
    FunctionEntry("half-norm", "modified L1/2: square root of the mean weight of a channel",
                  "amc.train.sparsify.half_norm:half_norm", "Chang & Sha 2018, doi:10.1109/ACCESS.2018.2886876"),
    FunctionEntry("selective-decay", "weight decay that grows, of the channels that would be pruned",
                  "amc.train.sparsify.selective_decay:selective_decay", "Tessier et al. 2022, arXiv:2011.10520"),
    FunctionEntry("learning-compression", "train and compress by turns, until both agree",
                  "amc.train.sparsify.learning_compression:learning_compression",
                  "Carreira-Perpiñán & Idelbayev 2018, CVPR"),
    FunctionEntry("variational-dropout", "noise on every weight, as much as it can stand",
                  "amc.train.sparsify.variational_dropout:variational_dropout",
                  "Molchanov et al. 2017, arXiv:1701.05369"),
    FunctionEntry("bayesian-compression", "scales of channels and weights with noise, under a prior that removes them",
                  "amc.train.sparsify.bayesian:bayesian_compression", "Louizos et al. 2017, arXiv:1705.08665"),
    FunctionEntry("hard-concrete", "L0 penalty by stochastic gates that can be exactly 0",
                  "amc.train.sparsify.concrete:hard_concrete", "Louizos et al. 2018, arXiv:1712.01312"),
    FunctionEntry("structured-bayesian", "log-normal noise on channels",
                  "amc.train.sparsify.log_normal:structured_bayesian", "Neklyudov et al. 2017, arXiv:1705.07283"),
    FunctionEntry("continuous-sparsification", "gates that harden into steps",
                  "amc.train.sparsify.continuous:continuous_sparsification", "Savarese et al. 2019, arXiv:1912.04427"),
    FunctionEntry("trained-widths", "transformable architecture search: probabilities of widths under a share of MACs",
                  "amc.train.sparsify.widths:trained_widths", "Dong & Yang 2019, arXiv:1905.09717"),
))  # fmt: skip


def preparations() -> dict[str, Entry[Preparation]]:
    """All preparations by name.

    >>> list(preparations())[:2]
    ['bn-l1', 'group-lasso']
    """
    return PREPARATIONS.entries()


def preparation_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The preparation's ``settings`` as it takes them. Raises ConfigError where there is none, or one is wrong."""
    return options(f"preparation {name}", PREPARATIONS.load(name), settings)


def prepared(name: str, settings: Mapping[str, Any], network: DenseNetwork, plan: Plan) -> Sparsifier:
    """What a preparation gives for a network. Raises ConfigError where the network lacks what it works on."""
    given = preparation_settings(name, settings)
    if not network.graph.sites:
        raise ConfigError(f"--sparsify {name}: no channel of this network can be removed. Leave --sparsify out.")
    with PREPARATIONS.guarded(name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return PREPARATIONS.load(name)(network, plan, **given)
