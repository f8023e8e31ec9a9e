"""The stages of a run up to the choice of a policy. A resumed run repeats no finished work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from amc.config import Config, unless_auto
from amc.deploy.export import file_layout
from amc.errors import ConfigError
from amc.evaluation.cached import CachedBackend
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.latency_weight import LatencyWeight
from amc.evaluation.problem import Problem, recorded
from amc.evaluation.reward import Evaluation, load_reward
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.build import build_graph
from amc.graph.sites import Graph, SiteFeatures
from amc.graph.trace import unprovable
from amc.importance import Need, load_criterion, select
from amc.latency.constraint import LatencyConstraint
from amc.latency.correction import RoundOver
from amc.latency.prediction import LatencyPrediction
from amc.operators.operator import NetworkFacts
from amc.pipeline.backends import RemoteBackend, RoundObserver, search_backend
from amc.pipeline.cost import training_cost
from amc.pipeline.original import original_onnx
from amc.pipeline.record import Record
from amc.pipeline.recovering import try_own_recovery
from amc.pipeline.spaces import make_space, used_operators
from amc.pipeline.study import study_place
from amc.pipeline.timing import RunTiming
from amc.reconstruction.sequential import FAST, FULL
from amc.runtime.memory import Memory
from amc.runtime.monitor import Silent
from amc.search import may_race, run_searcher
from amc.space.budget import Space
from amc.space.sites import Choice, Setting
from amc.task import check_training, evaluate
from amc.task.metrics import CLASSIFICATION
from amc.task.splits import sample
from amc.train import BEFORE_TRAINING

FEW = 512
"""Number of samples for detecting an untrained network."""


class Stages:
    """The stages from the network to the evaluated policies."""

    def __init__(self, record: Record, remote: RemoteBackend | None = None) -> None:
        """``remote`` scores policies on other machines."""
        self.record, self._remote = record, remote
        self._known: NetworkFacts | None = None
        self.memory = Memory.of(unless_auto(record.config.memory_limit))

    def check_training(self) -> None:
        """Raise AmcError if the network cannot be trained, or the configured recovery does not work for it."""
        if self.record.epochs > 0:
            check_training(self.record.task)
            try_own_recovery(self.record)
            self.record.monitor.say(f"{training_cost(self.record)}.")

    def inspect(self) -> Graph:
        """Find the channel groups, and the largest number of samples in one forward pass."""
        record = self.record
        graph = build_graph(record.task.model, record.task.example)
        record.fit(self.memory.batch(graph.trace.peak, record.task.batch))
        why = unprovable(graph.trace) if record.config.budget.flops is not None else None
        if why is not None:
            record.monitor.say(f"{why}.")
        expected = record.config.finetune.schedule == BEFORE_TRAINING
        if not expected and not isinstance(record.monitor, Silent) and record.journal.last("evaluation") is None:
            self._warn_of_chance()
        return graph

    def _warn_of_chance(self) -> None:
        """Warn if the original is hardly better than chance: then scores of policies are mostly noise."""
        record = self.record
        few = sample(record.task.splits.search, FEW, record.config.seed)
        targets = few.fetch(torch.arange(len(few)))[1]
        if record.task.objective is not CLASSIFICATION or not isinstance(targets, Tensor) or targets.ndim != 1:
            return
        if targets.is_floating_point() or int(targets.min()) < 0:
            return
        commonest = float(targets.long().bincount().max()) / len(targets)
        right = evaluate(record.task.model, record.task, few)[1]
        if right < min(2 * commonest, commonest + 0.1 * (1 - commonest)):
            record.monitor.say(
                f"warning: the original is right on {100 * right:.1f} % of {len(targets)} search samples, and always "
                f"naming the commonest class on {100 * commonest:.1f} %. It looks untrained: give it trained weights "
                "(--weights). Otherwise any gain comes from the training alone."
            )

    def space(
        self,
        graph: Graph,
        latency: LatencyConstraint | None = None,
        predicted: LatencyPrediction | None = None,
    ) -> Space:
        """The legal policies with exact costs; for ``latency`` and ``predicted`` see `make_space`."""
        return make_space(self.record.config, self._facts(graph), latency, predicted)

    def _facts(self, graph: Graph) -> NetworkFacts:
        """The network with the layout of its ONNX file, which is read once."""
        if self._known is None or self._known.graph is not graph:
            model = self.record.task.model
            self._known = NetworkFacts(model, graph, file_layout(original_onnx(self.record), graph, model))
        return self._known

    def calibrate(self, graph: Graph, space: Space, settings: EvaluationSettings | None = None) -> Evaluator:
        """Collect moments and channel orders, and make the evaluator. By default, ``settings`` are those of the run."""
        record = self.record
        early = None  # fail before moments are collected if the criterion does not suit the network
        if Need.MOMENTS not in load_criterion(record.config.search.criterion).needs:
            early = record.memo.orders(graph, {})
        moments = record.memo.moments(graph, self.memory, record.folder, record.step)
        orders = record.memo.orders(graph, moments, self.memory) if early is None else early
        if record.memo.chosen_criteria:
            best = Counter(record.memo.chosen_criteria.values()).most_common()
            record.monitor.say(f"criteria: {', '.join(f'{name} at {sites} sites' for name, sites in best)}.")
        given = settings or settings_of(record.config)
        evaluator = Evaluator(record.task, graph, orders, moments, given, self.memory, space.sites,
                              used_operators(record.config))  # fmt: skip
        return evaluator if settings else self._decided(evaluator, space.fit(np.ones(len(space.names))))

    def _decided(self, trial: Evaluator, uniform: Choice) -> Evaluator:
        """The evaluator with the faster dtype, and with recalibration if that improves the score of ``uniform``."""
        record, asked = self.record, self.record.config.search.recalibrate
        dtype = record.once("evaluation-precision", lambda: record.memo.faster_dtype(trial))
        tried = [
            trial.with_settings(replace(trial.settings, dtype=dtype, recalibrate=recalibrate))
            for recalibrate in (False, True)
        ]
        helps = partial(self._recalibration_helps, tried, uniform)
        return tried[record.once("recalibrate", helps) if asked == "auto" else asked == "on"]

    def _recalibration_helps(self, tried: Sequence[Evaluator], uniform: Choice) -> bool:
        """Whether recalibration improves the score of ``uniform``; ``tried`` are the evaluators without and with it."""
        backends = [CachedBackend(evaluator, self.record.memo, evaluator.settings) for evaluator in tried]
        plain, recalibrated = (backend.score(uniform).loss for backend in backends)
        return recalibrated < plain

    def search(
        self, graph: Graph, space: Space, evaluator: Evaluator, latency: LatencyConstraint | None = None
    ) -> tuple[Evaluation, ...] | None:
        """Run the searcher. None if the latency model was corrected, which ends the round."""
        record = self.record
        search, reward = record.config.search, load_reward(record.config.search.reward)
        evaluations, earlier = search.evaluations, list[Evaluation]()
        if latency:
            evaluations = latency.round.evaluations
            earlier = list(islice(recorded(record.journal), latency.now.evaluated))
        timed = getattr(reward, "needs_latency", False) and record.config.budget.latency is None
        weight = self._latency_weight(space)
        bench = RunTiming(record, graph).bench() if timed else None
        backend = search_backend(record, evaluator, space, bench, self._remote, kept=weight is None)
        problem = Problem(
            space,
            site_features(graph, space.names),
            backend,
            reward,
            record.journal,
            RoundObserver(backend, latency, space),
            study_place(record),
            races=search.race and may_race(search.searcher),
            latency_weight=weight,
        )
        try:
            if search.criterion_scope == "site":
                run_searcher(search.searcher, search.searcher_options, problem, evaluations, record.config.seed)
            else:
                problem.evaluate(self._selected(graph, space))
        except RoundOver as over:
            record.monitor.say(f"latency predictions were wrong (corrected by {over.scale:.3f}): searching again")
            return None
        self._record_sensitivity(space, backend.site_errors)
        failed = [e for e in problem.evaluations if e.error is not None]
        if len(failed) == len(problem.evaluations):
            raise ConfigError(f"every evaluation failed; the first: {failed[0].error}")
        if failed:
            record.monitor.say(f"{len(failed)} of {len(problem.evaluations)} evaluations failed: {failed[0].error}")
        return tuple({e.choice: e for e in [*earlier, *problem.evaluations]}.values())

    def _record_sensitivity(self, space: Space, errors: Mapping[tuple[int, Setting], float]) -> None:
        """Journal the errors of all sites at all settings, if the searcher has asked for them."""
        found = [[errors.get((i, s), math.inf) for s in site.settings] for i, site in enumerate(space.sites)]
        known = [
            {"site": site.name, "sizes": list(site.sizes), "errors": own}
            for site, own in zip(space.sites, found, strict=True)
        ]
        if all(math.isfinite(error) for own in found for error in own):
            self.record.once("sensitivity", lambda: known)

    def _latency_weight(self, space: Space) -> LatencyWeight | None:
        """The weight of latency, if the space has that cost without limiting it."""
        original = space.costs(space.full)
        if "latency" not in original or "latency" in space.limits:
            return None
        return LatencyWeight(self.record.config.search.latency_weight, original["latency"])

    def _selected(self, graph: Graph, space: Space) -> Choice:
        """The policy by the criterion alone, without a search."""
        record, search = self.record, self.record.config.search
        scores: list[Tensor] = []
        if search.criterion_scope != "local":
            wanted = Need.MOMENTS in load_criterion(search.criterion).needs
            moments = record.memo.moments(graph, self.memory, record.folder, record.step) if wanted else {}
            scores = record.memo.channel_scores(graph, moments)
        found = select(search.criterion_scope, scores, space)
        if found.saved:
            record.monitor.say(f"kept at their smallest width, where the criterion left less: {', '.join(found.saved)}")
        return found.choice


def site_features(graph: Graph, names: Sequence[str]) -> list[SiteFeatures]:
    """The features of the sites ``names``.

    A site ``KIND:LAYER`` of another operator than channels has the features of its layer's channel group, or zeros if
    there is none.
    """
    groups = {site.name: site.features for site in graph.sites}
    layers = {name: site.features for site in graph.sites for name in site.layers}
    nothing = SiteFeatures(*[0.0] * len(SiteFeatures._fields))
    return [groups.get(name) or layers.get(name.partition(":")[2], nothing) for name in names]


def settings_of(config: Config) -> EvaluationSettings:
    """The evaluation settings of a configuration. ``auto`` is decided later, with a trial evaluator."""
    search = config.search
    re_solved = search.reconstruct and config.finetune.schedule != BEFORE_TRAINING  # which keeps the first weights
    sequential = search.sequential_reconstruction if re_solved else "off"
    reconstruction = Reconstruction(
        re_solved,
        FAST if sequential == "search" else None,
        None if sequential == "off" else FULL,
        config.seed,
    )
    return EvaluationSettings(search.objective, reconstruction=reconstruction)
