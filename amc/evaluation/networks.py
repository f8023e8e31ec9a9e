"""Build the network of a policy: prune, re-solve the layers, recalibrate BatchNorms.

All policies are applied to one scratch copy of the original, which only exchanges tensors, so an evaluation does not
copy modules. `amc.operators.compose.PolicyApplier` does the pruning.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import nn

from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.channels import BATCH_NORMS, Kept
from amc.operators.compose import PolicyApplier, apply_settings, recorded_settings
from amc.operators.operator import NetworkFacts
from amc.operators.registry import OPERATORS, Operators
from amc.reconstruction.least_squares import Reconstructor
from amc.reconstruction.moments import Moments
from amc.reconstruction.recalibration import recalibrate
from amc.reconstruction.sequential import SequentialReconstruction
from amc.runtime.memory import Memory
from amc.space.sites import Choice, SiteSettings
from amc.task import Task
from amc.task.checks import copied

_MOST_ROOM = 256 << 20
"""Most bytes for refined networks."""


class _RecentNetworks:
    """The networks that were refined last, as long as they fit: the best few are scored, tried, and one is trained."""

    def __init__(self, room: int) -> None:
        self._room, self._known = room, dict[Hashable, nn.Module]()

    def get(self, key: Hashable) -> nn.Module | None:
        """The network, which must not be changed; None if it was not kept."""
        return self._known.get(key)

    def keep(self, key: Hashable, network: nn.Module) -> None:
        """Keep a copy, in place of the oldest ones if there is no room."""
        size = _bytes(network)
        self._known.pop(key, None)
        while self._known and size + sum(map(_bytes, self._known.values())) > self._room:
            del self._known[next(iter(self._known))]
        if size <= self._room:
            self._known[key] = copied(network)


def _bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))


class PolicyNetworks:
    """Builds the networks of policies on one scratch copy: every call overwrites the network that the last returned."""

    def __init__(
        self,
        task: Task,
        facts: NetworkFacts,
        sites: Sequence[SiteSettings],
        moments: Mapping[str, Moments],
        reconstruction: Reconstruction,
        memory: Memory | None = None,
        operators: Operators = OPERATORS,
    ) -> None:
        """``sites`` are offered by ``operators``; a choice has one setting for each. ``moments`` are of layers' inputs.

        ``memory`` limits the samples and rows of sequential reconstruction.
        """
        self._task, self._facts, self._sites, graph = task, facts, tuple(sites), facts.graph
        self._operators = operators
        self._scratch = copied(task.model).requires_grad_(False)
        self._applier = PolicyApplier(self._scratch, facts, sites, operators)
        self._solve = Reconstructor(graph, task.model, moments, memory) if reconstruction.solve else None
        self._sequential = {
            effort: SequentialReconstruction(task, graph, reconstruction.seed, effort, memory)
            for effort in dict.fromkeys((reconstruction.final, reconstruction.search))
            if effort is not None
        }
        self._recent = _RecentNetworks(min(_MOST_ROOM, memory.share // 4) if memory else _MOST_ROOM)
        self._norms = [m for m in self._scratch.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]

    @property
    def full(self) -> Choice:
        """The choice that keeps the original network."""
        return tuple(site.original for site in self._sites)

    def kept(self, choice: Choice) -> Kept:
        """The kept channels of every group of the graph, ascending."""
        return self._applier.kept(choice)

    def plain(self, choice: Choice) -> nn.Module:
        """The pruned network with its layers re-solved on the original's inputs only."""
        self._cut(choice)
        self._applier.complete(choice)
        return self._scratch

    def _cut(self, choice: Choice) -> nn.Module:
        self._applier.cut(choice, self._solve(self.kept(choice)) if self._solve else None)
        return self._scratch

    def network(self, choice: Choice, settings: EvaluationSettings) -> nn.Module:
        """The network that the search scores, in evaluation mode."""
        network, effort = self._cut(choice), settings.reconstruction.search
        if effort is not None:
            self._sequential[effort](network, self.kept(choice), settings.half, self._applier.restrictions(choice))
        self._applier.complete(choice)
        if settings.recalibrate:
            recalibrate(network, self._norms, self._task)
        return network

    def refined(self, choice: Choice, settings: EvaluationSettings) -> nn.Module:
        """The network re-solved with the final effort, as it goes into training. Better, but slower to compute."""
        effort = settings.reconstruction.final
        if effort is None:
            self.network(choice, settings)
        else:
            restrictions = self._applier.restrictions(choice)
            self._sequential[effort](self._cut(choice), self.kept(choice), restrictions=restrictions)
            self._applier.complete(choice)
        self._recent.keep((choice, settings), self._scratch)
        return self._scratch

    def pruned(self, choice: Choice, settings: EvaluationSettings) -> nn.Module:
        """The refined network as a separate module; parameters that the original trains are trainable."""
        own = copied(self._recent.get((choice, settings)) or self.refined(choice, settings))
        wanted = {name: p.requires_grad for name, p in self._task.model.named_parameters()}
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(wanted[name])
        self._applier.finish(own, choice)
        return own

    def cut(self, network: nn.Module, choice: Choice) -> nn.Module:
        """A copy of ``network``, which has the original's structure, pruned by a policy without re-solving weights."""
        own = copied(network)
        settings = recorded_settings(self._facts, self._sites, choice, self._operators)
        apply_settings(own, NetworkFacts(own, self._facts.graph), settings, self._operators)
        self._applier.finish(own, choice)
        return own

    def forget(self) -> None:
        """Drop cached solutions of sequential reconstruction (for benchmarks)."""
        for sequential in self._sequential.values():
            sequential.forget()
