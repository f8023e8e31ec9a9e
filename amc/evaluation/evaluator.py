"""The evaluator: score policies on the search split, before any training."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from amc.evaluation.backend import Backend
from amc.evaluation.networks import PolicyNetworks
from amc.evaluation.racer import Racer, Reading
from amc.evaluation.score import Race, Score
from amc.evaluation.scorer import Scorer, SearchSamples
from amc.evaluation.settings import Dtype, EvaluationSettings
from amc.evaluation.site_errors import SiteErrors
from amc.graph.channels import Kept
from amc.graph.sites import Graph
from amc.operators.channels import all_widths
from amc.operators.compose import recorded_settings
from amc.operators.operator import NetworkFacts, PolicySetting
from amc.operators.registry import OPERATORS, Operators
from amc.reconstruction.fold import NormFolder
from amc.reconstruction.moments import Moments
from amc.runtime.memory import Memory
from amc.space.sites import Choice, Setting, SiteSettings
from amc.task import Task

_SMALL = 4e6  # MACs of a network for which the dtype hardly matters


class Evaluator(Backend):
    """Scores policies with fixed settings."""

    def __init__(
        self,
        task: Task,
        graph: Graph,
        orders: Sequence[Tensor],
        moments: Mapping[str, Moments],
        settings: EvaluationSettings,
        memory: Memory | None = None,
        sites: Sequence[SiteSettings] | None = None,
        operators: Operators = OPERATORS,
    ) -> None:
        """``orders``: the channels ``[C]`` of every group, most important first. ``moments``: those of layers' inputs.

        ``memory`` limits sequential reconstruction and sensitivities. ``sites`` are those of the space, by default all
        widths of all channel groups. ``operators`` are those that offer the sites.
        """
        self.settings = settings
        self._task, self._graph, self._moments, self._memory = task, graph, moments, memory
        self.operators = operators
        self._facts = NetworkFacts(task.model, graph, orders=[order.numpy() for order in orders])
        self._sites = tuple(all_widths(graph) if sites is None else sites)
        self.samples = SearchSamples(task, NormFolder(task.model, graph.layers, task.example))
        self.networks = self._new_networks()
        self._errors = self._new_errors()
        self._scorer = Scorer(self.samples, settings.objective)
        self._racer = Racer(self.networks, self._scorer, settings)

    def _new_networks(self) -> PolicyNetworks:
        how = self.settings.reconstruction
        return PolicyNetworks(self._task, self._facts, self._sites, self._moments, how, self._memory, self.operators)

    def _new_errors(self) -> SiteErrors:
        objective = self.settings.objective
        return SiteErrors(self._task, self._facts, self._sites, self._moments, objective, self._memory, self.operators)

    def with_settings(self, settings: EvaluationSettings) -> Evaluator:
        """An evaluator with other settings, which shares with this one all parts that do not depend on the change."""
        other = copy.copy(self)
        other.settings = settings
        if settings.reconstruction != self.settings.reconstruction:
            other.networks = other._new_networks()
        if settings.objective != self.settings.objective:
            other._errors = other._new_errors()
        other._scorer = Scorer(self.samples, settings.objective)
        other._racer = Racer(other.networks, other._scorer, settings)
        return other

    def kept(self, choice: Choice) -> Kept:
        """The kept channels of every group of the graph, ascending."""
        return self.networks.kept(choice)

    def recorded(self, choice: Choice) -> dict[str, PolicySetting]:
        """The entries of policy.json for a policy, by site."""
        return recorded_settings(self._facts, self._sites, choice, self.operators)

    @property
    def races(self) -> bool:
        return True

    def score(self, choice: Choice) -> Score:
        """Mean objective of the search and mean metric of the pruned network over the search split."""
        samples = self._scorer.read(self.networks.network(choice, self.settings), self.settings.half)
        self._racer.remember(choice, Reading(samples, len(self._scorer)))
        return _mean(samples)

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        """Compare a policy with the ``incumbent`` on as few samples as needed (`amc.evaluation.racer`)."""
        return self._racer.race(choice, incumbent, handicap)

    def site_error(self, site: int, setting: Setting) -> float:
        """Estimated error of a site's setting, without an evaluation (`amc.evaluation.site_errors`)."""
        return self._errors(site, setting)

    def refined_score(self, choice: Choice) -> Score:
        """The score of the network after full reconstruction, as it would be trained; always in float32."""
        return _mean(self._scorer.read(self.networks.refined(choice, self.settings)))

    def network(self, choice: Choice) -> nn.Module:
        """The network that `score` evaluates. It is a scratch copy, which the next call overwrites."""
        return self.networks.network(choice, self.settings)

    def refined(self, choice: Choice) -> nn.Module:
        """The network that `refined_score` evaluates; also a scratch copy."""
        return self.networks.refined(choice, self.settings)

    def pruned(self, choice: Choice) -> nn.Module:
        """The refined network as a separate, trainable module."""
        return self.networks.pruned(choice, self.settings)

    def cut(self, network: nn.Module, choice: Choice) -> nn.Module:
        """A copy of ``network``, which has the original's structure, pruned by a policy without re-solving weights."""
        return self.networks.cut(network, choice)

    def faster_dtype(self) -> Dtype:
        """bfloat16 if it makes the original clearly faster on this machine, else float32. Policies rank the same.

        Small networks always use float32.
        """
        if self._graph.trace.macs < _SMALL:
            return "float32"
        seconds: dict[Dtype, list[float]] = {"float32": [], "bfloat16": []}
        original = self.networks.plain(self.networks.full)
        with self._scorer.folded(original):
            for _ in range(3):
                for dtype, times in seconds.items():
                    start = time.perf_counter()
                    try:
                        next(self._scorer.blocks(original, dtype == "bfloat16"))
                    except RuntimeError:  # some operator has no kernel for bfloat16
                        if dtype == "float32":
                            raise
                        return "float32"
                    times.append(time.perf_counter() - start)
        return "bfloat16" if min(seconds["bfloat16"]) < 0.9 * min(seconds["float32"]) else "float32"


def _mean(samples: Tensor) -> Score:
    loss, metric = samples.mean(1).tolist()
    return Score(loss, metric)
