"""The stages of a run up to the choice of a policy. Each can be repeated: what was done is not done again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.config import AUTO, BudgetConfig, Config, binding, unless_auto
from amc.deploy.export import check_parity, export_onnx, file_layout
from amc.errors import ConfigError
from amc.evaluation.cached import CachedBackend, refined_score
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.problem import Problem, StudyPlace, recorded, site_features
from amc.evaluation.reward import Evaluation, load_reward
from amc.evaluation.score import Score
from amc.evaluation.settings import EvaluationSettings, Reconstruction
from amc.graph.build import Graph, build_graph
from amc.graph.surgery import shallow_copy
from amc.graph.trace import unprovable
from amc.importance import Need, load_criterion, select
from amc.latency import Predictor, Runner, is_profile, load_latency_model
from amc.latency.constraint import LatencyConstraint, limited_by_model, limited_here, limited_on_device
from amc.latency.correction import RoundOver
from amc.latency.prediction import effective_widths
from amc.latency.profiling import Bench, latency_problem, learn_latency, profile_key
from amc.operators.compose import cost_model, offered_sites
from amc.operators.operator import NetworkFacts, SettingBounds
from amc.operators.policy import fingerprint
from amc.operators.registry import OPERATORS, Operators
from amc.pipeline.backends import RemoteBackend, search_backend
from amc.pipeline.record import Record
from amc.reconstruction.sequential import FAST, FULL
from amc.runtime.cache import Table
from amc.runtime.files import replacing
from amc.runtime.memory import Memory
from amc.runtime.plugins import file_digests
from amc.search import may_race, run_searcher
from amc.space.budget import Budget, Space
from amc.space.sites import Choice
from amc.task import evaluate
from amc.train import train

FEW = 4
"""Samples by which the original is compared on ONNX Runtime."""
SPARE = 3
"""Policies that are measured beyond the candidates: some may turn out too slow."""


@dataclass(frozen=True)
class Shortlist:
    """The policies that one is chosen of."""

    evaluations: Sequence[Evaluation]
    obstacle: str | None = None
    """Why the limit on latency cannot be kept, where none of them keeps it."""


class Stages:
    """From the network to the best policy."""

    def __init__(self, record: Record, remote: RemoteBackend | None = None) -> None:
        """``remote`` scores policies on other machines."""
        self.record, self._remote = record, remote
        self.memory = Memory.of(unless_auto(record.config.memory_limit))

    def inspect(self) -> Graph:
        """The channel groups, and how many samples may be in the network at once."""
        record = self.record
        graph = build_graph(record.task.model, record.task.example)
        record.fit(self.memory.batch(graph.trace.peak, record.task.batch))
        why = unprovable(graph.trace) if record.config.budget.flops is not None else None
        if why is not None:
            record.monitor.say(f"{why}.")
        return graph

    def space(self, graph: Graph, latency: LatencyConstraint | None = None) -> Space:
        """Legal widths under the budget, with exact costs; latency as it is predicted in this round."""
        record = self.record
        layout = file_layout(self._original(), graph, record.task.model)
        return make_space(record.config, NetworkFacts(record.task.model, graph, layout), latency)

    def _exported(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "original.onnx")
            export_onnx(self.record.task.model, self.record.task.example, path)
            return path.read_bytes()

    def calibrate(self, graph: Graph, space: Space, settings: EvaluationSettings | None = None) -> Evaluator:
        """Moments and channel orders, and an evaluator by them; ``settings`` are this run's where not given."""
        record = self.record
        moments = record.memo.moments(graph, self.memory, record.folder, record.step)
        orders = record.memo.orders(graph, moments)
        given = settings or settings_of(record.config)
        evaluator = Evaluator(record.task, graph, orders, moments, given, self.memory, space.sites)
        return evaluator if settings else self._decided(evaluator, space.fit(np.ones(len(space.names))))

    def _decided(self, trial: Evaluator, uniform: Choice) -> Evaluator:
        """An evaluator of the dtype that is faster here, and of the recalibration that ``uniform`` scores better by."""
        record, asked = self.record, self.record.config.search.recalibrate
        dtype = record.once("evaluation-precision", lambda: record.memo.faster_dtype(trial))
        tried = [
            trial.with_settings(replace(trial.settings, dtype=dtype, recalibrate=recalibrate))
            for recalibrate in (False, True)
        ]

        def recalibration_helps() -> bool:
            backends = [CachedBackend(evaluator, record.memo, evaluator.settings) for evaluator in tried]
            plain, recalibrated = (backend.score(uniform).loss for backend in backends)
            return recalibrated < plain

        return tried[record.once("recalibrate", recalibration_helps) if asked == "auto" else asked == "on"]

    def search(
        self, graph: Graph, space: Space, evaluator: Evaluator, latency: LatencyConstraint | None = None
    ) -> tuple[Evaluation, ...] | None:
        """Let the searcher propose policies. None where latency is predicted otherwise since: the round is over."""
        record = self.record
        search, reward = record.config.search, load_reward(record.config.search.reward)
        evaluations, earlier = search.evaluations, list[Evaluation]()
        if latency:
            evaluations = latency.round.evaluations
            earlier = list(islice(recorded(record.journal), latency.now.evaluated))
        timed = getattr(reward, "needs_latency", False) and record.config.budget.latency is None
        backend = search_backend(record, evaluator, space, self.bench(graph) if timed else None, self._remote)

        def observe(evaluation: Evaluation, proposals: int) -> None:
            backend.observe(evaluation, proposals)
            if latency:
                latency.check(space, proposals, lambda: [e.choice for e in problem.best()])

        problem = Problem(
            space, site_features(graph), backend, reward, record.journal, observe, self._study(),
            races=search.race and may_race(search.searcher),
        )  # fmt: skip
        try:
            if search.criterion_scope == "site":
                run_searcher(search.searcher, search.searcher_options, problem, evaluations, record.config.seed)
            else:
                problem.evaluate(self._selected(graph, space))
        except RoundOver as over:
            record.monitor.say(f"latency was predicted wrongly (corrected by {over.scale:.3f}): searching on")
            return None
        failed = [e for e in problem.evaluations if e.error is not None]
        if len(failed) == len(problem.evaluations):
            raise ConfigError(f"every evaluation failed; the first: {failed[0].error}")
        if failed:
            record.monitor.say(f"{len(failed)} of {len(problem.evaluations)} evaluations failed: {failed[0].error}")
        return tuple({e.choice: e for e in [*earlier, *problem.evaluations]}.values())

    def _selected(self, graph: Graph, space: Space) -> Choice:
        """The policy that the criterion alone gives."""
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

    def _study(self) -> StudyPlace:
        """Where a searcher's study is kept: in the run's folder, unless the user names a storage."""
        record = self.record
        config, name = record.config, record.config.search.study_name
        stem = f"{Path(config.model.name).name} on {Path(config.data.name).name}"
        again = sum(1 for _ in record.journal.records("correction")) - 1
        if again > 0:  # under a corrected latency model the same proportions are other policies
            stem += f", search {again + 1}"
        if config.search.storage is None:
            return StudyPlace(str(record.folder / "study.log"), name or stem)
        said = binding(config)
        search = {k: v for k, v in said["search"].items() if k not in ("evaluations", "storage", "study_name")}
        task = record.task
        files = file_digests([config.model.name, config.data.name, config.objective, config.search.criterion,
                              config.search.reward])  # fmt: skip
        same = [fingerprint(task.model), dict(task.splits.provenance), said["budget"], search, config.seed,
                config.objective, files]  # fmt: skip
        identity = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:32]
        return StudyPlace(config.search.storage, name or f"{stem}, {identity[:8]}", identity, shared=True)

    def _original(self) -> Path:
        """original.onnx as this run has made it; made again where it is damaged or another."""
        path, journal = self.record.folder / "original.onnx", self.record.journal
        known = journal.last("original")
        if known is None or not path.exists() or _sha256(path) != known["sha256"]:
            with replacing(path) as temporary:
                temporary.write_bytes(self.record.memo.original_onnx(self._exported))
                self._runs_alike(temporary)
            journal.append("original", sha256=_sha256(path))
        return path

    def _runs_alike(self, path: Path) -> None:
        """See that the runtime computes what torch does before anything is spent on a search. Raises ExportError."""
        task = self.record.task
        inputs, _ = task.splits.search.fetch(torch.arange(min(FEW, len(task.splits.search))))
        check_parity(shallow_copy(task.model), inputs, Runner(path))

    def bench(self, graph: Graph) -> Bench:
        """What measures policies on ONNX Runtime; what the original takes is measured once in a run."""
        record = self.record
        known = record.journal.last("latency-scale")
        ms = None if known is None else float(known["ms"])
        threads, measuring = record.config.latency_threads, record.lock.exclusive
        probe = record.instruments.probe
        bench = Bench(record.task, graph, self._original(), threads, ms, measuring, probe)
        if known is None:
            record.journal.append("latency-scale", ms=bench.original_ms)
        return bench

    def latency(self, graph: Graph) -> LatencyConstraint | None:
        """What predicts, verifies and corrects latency, where it is limited."""
        record = self.record
        asked, journal, evaluations = record.config.budget.latency, record.journal, record.config.search.evaluations
        if asked is None:
            return None
        bench, named = self.bench(graph), record.config.search.latency_model
        progress = record.step
        if named is None or is_profile(named):
            key = profile_key(bench, record.config.latency_threads, record.task)
            path = self._profile(bench, graph, key) if named is None else Path(named)
            return limited_here(learn_latency(bench, graph, key, path, 0, progress), bench, asked, journal, evaluations)
        remember = self._remembered()
        problem = latency_problem(bench, graph, self._original(), record.config, remember, record.task, progress)
        predictor = Predictor(load_latency_model(named), problem)
        if predictor.measures:
            return limited_on_device(predictor, problem, asked, journal, evaluations)
        return limited_by_model(predictor, asked, journal, evaluations)

    def _profile(self, bench: Bench, graph: Graph, key: dict[str, Any]) -> Path:
        """The run's profile: made by one of the runs that share it. What a run has corrected it keeps."""
        record = self.record
        path = record.folder / "profile.json"

        def learn() -> bytes:
            learn_latency(bench, graph, key, path, record.config.profile_seconds, record.step)
            return path.read_bytes()

        if record.journal.last("profile") is None or not path.exists():
            content = record.memo.profile(key, learn)
            if not path.exists() or path.read_bytes() != content:
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
                record.monitor.say("latency is predicted by the profile that an earlier run has made here")
            record.journal.append("profile")
        return path

    def _remembered(self) -> Callable[[str, Callable[[], float]], float]:
        """Gives what a device took for a network: once in a run, and once for all runs while the device is the same."""
        record = self.record
        times: Table | None = None

        def alone(measure: Callable[[], float]) -> float:
            with record.lock.exclusive():
                return measure()

        def remember(key: str, measure: Callable[[], float]) -> float:
            nonlocal times
            known = {r["key"]: float(r["ms"]) for r in record.journal.records("device-latency")}
            if key in known:
                return known[key]
            ms = None
            if not known:  # the first one a run measures itself, and sees whether the device is what it was
                ms = known[key] = alone(measure)
            if times is None:
                times = record.memo.device_times(*next(iter(known.items())))
            found = float(times.once(key, lambda: alone(measure))) if ms is None else ms
            record.journal.append("device-latency", key=key, ms=found)
            return found

        return remember

    def promising(
        self, found: Sequence[Evaluation], space: Space, latency: LatencyConstraint | None
    ) -> Shortlist | None:
        """The best few; where latency is limited, of those that keep to it when measured. None: search again."""
        record = self.record
        count = max(record.config.search.refine, record.config.finetune.candidates)
        best = best_first(found)
        if latency is None:
            return Shortlist(best[:count])
        ranked = [e.choice for e in best]
        good = latency.fast_enough(ranked, count + SPARE, record.step)
        if good:
            return Shortlist([e for e in best if e.choice in good][:count])
        obstacle = latency.search_again(space, latency.likely(ranked, count + SPARE))
        if obstacle is None:
            record.monitor.say("all of the best networks are over the limit on latency: searching again")
            return None
        record.monitor.say(f"no network is within the limit on latency, and {obstacle}: the fastest is taken")
        closest = latency.closest(ranked)
        return Shortlist([e for e in best if e.choice == closest], obstacle)

    def choose(self, found: Sequence[Evaluation], evaluator: Evaluator) -> tuple[Choice, list[dict[str, Any]]]:
        """Refine the best policies, fine-tune the best of those briefly, and take the winner.

        Scores before training do not tell it; without training the best refined one is taken.
        """
        record = self.record
        refined = self._refine(found, evaluator)
        best = sorted(refined, key=lambda choice: (-refined[choice].metric, refined[choice].loss))
        best = best[: record.config.finetune.candidates]
        share = record.config.finetune.trial_share
        if record.epochs == 0 or share == 0 or len(best) == 1:
            return best[0], [_candidate(c, refined[c], None, i == 0) for i, c in enumerate(best)]
        known = {tuple(r["choice"]): (r["loss"], r["metric"]) for r in record.journal.records("trial")}
        scores = []
        for index, choice in enumerate(best):
            if choice not in known:
                model = evaluator.pruned(choice)
                train(model, record.task, record.plan(share * record.epochs, model), record.task.model,
                      progress=lambda done, _, i=index: record.step((i + done) / len(best)))  # type: ignore[misc]  # fmt: skip
                loss, metric = evaluate(model, record.task, record.task.splits.search)
                record.journal.append("trial", choice=list(choice), loss=loss, metric=metric)
                known[choice] = (loss, metric)
            scores.append(known[choice])
            top = max(metric for _, metric in scores)
            record.step((index + 1) / len(best), f"best {100 * top:.2f} % after {100 * share:.0f} % of the training")
        winner = min(range(len(best)), key=lambda i: (-scores[i][1], scores[i][0]))
        return best[winner], [_candidate(c, refined[c], scores[i][1], i == winner) for i, c in enumerate(best)]

    def _refine(self, best: Sequence[Evaluation], evaluator: Evaluator) -> dict[Choice, Score]:
        """The best policies with their scores as refined networks."""
        record = self.record
        known = {tuple(r["choice"]): Score(r["loss"], r["metric"]) for r in record.journal.records("refined")}
        for index, found in enumerate(best):
            if found.choice not in known:
                score = known[found.choice] = refined_score(evaluator, record.memo, found.choice)
                record.journal.append("refined", choice=list(found.choice), loss=score.loss, metric=score.metric)
            record.step((index + 1) / len(best), "refining the best policies")
        return {e.choice: known[e.choice] for e in best}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_of(config: Config) -> EvaluationSettings:
    """What a configuration says of evaluations; ``auto`` is decided later, by a trial evaluator."""
    search = config.search
    sequential = search.sequential_reconstruction if search.reconstruct else "off"
    reconstruction = Reconstruction(
        search.reconstruct,
        FAST if sequential == "search" else None,
        None if sequential == "off" else FULL,
        config.seed,
    )
    return EvaluationSettings(search.objective, reconstruction=reconstruction)


def best_first(found: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that did not fail, the best first; equal rewards are told apart by the loss."""
    return sorted((e for e in found if e.error is None), key=lambda e: (-e.reward, e.loss))


def make_space(config: Config, network: NetworkFacts, latency: LatencyConstraint | None = None) -> Space:
    """What the operators offer under the configuration's budget. Raises BudgetError when it cannot be met.

    Without ``latency`` a limit on latency is left out. Where latency is all that is limited, only settings at which it
    changes are legal.
    """
    search, asked = config.search, config.budget.replace(latency=None)
    bounds, operators = SettingBounds(search.least_share, unless_auto(search.channel_step)), used_operators(config)
    sites = offered_sites(network, bounds, operators)
    resources = cost_model(network, sites, operators)
    full = [site.sizes[-1] for site in sites]
    original = {name: float(values[0]) for name, values in resources.costs([full]).items()}
    exact = asked != BudgetConfig() or config.budget.latency is None
    limits = Budget.from_config(asked).limits(original) if exact else {}
    others = asked.replace(branches=None) != BudgetConfig()
    if latency is None:
        return Space(sites, resources, limits)
    if not others:
        worthwhile = effective_widths(latency.prediction.predict, [site.sizes for site in sites])
        sites = tuple(site.only(sizes) for site, sizes in zip(sites, worthwhile, strict=True))
    costs = latency.costs(resources, [site.sizes for site in sites])
    return Space(sites, costs, {**limits, "latency": latency.limit_ms})


def used_operators(config: Config) -> Operators:
    """The operators that a search uses."""
    unused = set() if branches_go(config) else {"branches"}
    return [operator for operator in OPERATORS if operator.kind not in unused]


def branches_go(config: Config) -> bool:
    """Whether residual branches may be removed whole, which saves more time than narrow ones do.

    Latency models of the user's know nothing of that.
    """
    budget, named, least = config.budget, config.search.latency_model, config.search.min_keep
    if budget.branches is not None or budget.latency is None:
        return budget.branches is not None or least == 0
    return least in (AUTO, 0) and (named is None or is_profile(named))


def _candidate(choice: Choice, before: Score, after: float | None, chosen: bool) -> dict[str, Any]:
    return {"choice": list(choice), "before": before.metric, "after": after, "chosen": chosen}
