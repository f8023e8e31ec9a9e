"""The stages of a run. Each can be repeated: what the folder's journal holds of it is not done again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import nn

from amc import bundle, nested
from amc.budget import UNITS, Budget, Space, told
from amc.config import BudgetConfig, Config, binding, to_dict
from amc.device import Device
from amc.drift import QUICK_ROWS, QUICK_SAMPLES, Drift
from amc.errors import BundleError, ConfigError, ExportError
from amc.evaluate import Evaluator, Score
from amc.export import Parity, check_parity, check_program, count_onnx_macs, export_onnx, file_layout
from amc.files import replacing, sweep, write_json, write_text
from amc.finetune import Plan, asked_precision, fastest_precision, make_plan, train
from amc.graph import Graph, build_graph
from amc.journal import Journal
from amc.latency import Measurement, Predictor, Runner, load_latency_model, measure, onnx_metric
from amc.latency.int8 import fastest
from amc.memory import Memory
from amc.monitor import Monitor
from amc.pace import Believed, Learned, Pace, Paced, steps
from amc.policy import Choice, Policy, fingerprint, legal_widths
from amc.problem import Problem, StudyPlace, recorded, site_features
from amc.program import read_program, write_program
from amc.quiet import Machine
from amc.resources import ResourceModel
from amc.result import Result
from amc.reward import Evaluation, load_reward
from amc.search import load_searcher, searchers
from amc.shared import Shared, open_cache
from amc.task import Task, evaluate
from amc.timing import Bench, is_profile, latency_problem, learn_latency, profile_key
from amc.trace import trace

PARITY_SAMPLES = 64
INT8, INT8_SAMPLES = "model.int8.onnx", 256
PROMISE_SECONDS = 20.0
"""Longest that a limit on latency is measured for; less where the ratio is known well enough."""
SPARE = 3
"""Policies that are measured beyond the candidates: some may turn out too slow."""


class Scorer(Protocol):
    """Scores policies; it is told beforehand what it will be asked for."""

    def announce(self, choices: Sequence[Choice]) -> None: ...

    def __call__(self, choice: Choice) -> Score: ...


Elsewhere = Callable[[Config, Evaluator], Scorer]
"""Gives a scorer that does on other machines what the evaluator does on this one."""


class Stages:
    """The stages of one run, with what they share: the task, the folder, the journal."""

    def __init__(
        self,
        task: Task,
        config: Config,
        folder: Path,
        journal: Journal,
        monitor: Monitor,
        machine: Machine,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """``elsewhere`` scores policies on other machines."""
        self.task, self.config, self.folder = task, config, folder
        self.journal, self.monitor, self.machine = journal, monitor, machine
        self._elsewhere = elsewhere
        self.memory = Memory.of(config.memory_limit)
        self._cache = open_cache(config)
        self._bind()
        write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        monitor.say(f"{task.name}; everything goes to {folder} (after an interruption: --resume {folder})")

    def _bind(self) -> None:
        """A folder belongs to one network, one configuration and one set of splits."""
        identity = {
            "fingerprint": fingerprint(self.task.model),
            "config": hashlib.sha256(json.dumps(binding(self.config), sort_keys=True).encode()).hexdigest()[:32],
            "splits": dict(self.task.splits.provenance),
        }
        before = self.journal.last("run")
        if before is None:
            self.journal.append("run", **identity)
            return
        for part, now in identity.items():
            if before.get(part) != now:
                word = {"fingerprint": "network", "config": "configuration", "splits": "data"}[part]
                raise BundleError(f"{self.folder} was begun with another {word}: name another --out.")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Shown, timed and journalled; time spent before an interruption counts."""
        start = time.perf_counter()
        self.monitor.begin(name)
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with contextlib.suppress(OSError):  # the disk may be what stopped the stage
                self.journal.append("stage", name=name, seconds=round(seconds, 3))
        self.monitor.end(seconds)

    def _once(self, kind: str, find: Callable[[], Any]) -> Any:
        """What the journal holds of a kind; found out and recorded where it holds nothing."""
        known = self.journal.last(kind)
        if known is None:
            found = find()
            self.journal.append(kind, found=found)
            return found
        return known["found"]

    def finished(self) -> Result:
        """The result of a run that has ended already."""
        model = bundle.load(self.folder, self.task.model, self.task.example)
        policy = Policy.load(self.folder / "policy.json")
        evaluations = tuple(recorded(self.journal))
        return Result(model, policy, evaluations, bundle.read_result(self.folder), self.folder)

    def inspect(self) -> Graph:
        """The channel groups, and how many samples may be in the network at once."""
        graph = build_graph(self.task.model, self.task.example)
        self.task = replace(self.task, batch=self.memory.batch(graph.trace.peak, self.task.batch))
        self.shared = Shared(self._cache, self.task, self.config)
        return graph

    def space(self, graph: Graph, pace: Pace | None = None) -> Space:
        """Legal widths under the budget, with exact costs."""
        resources = ResourceModel(graph, self.task.model, file_layout(self._original(), graph, self.task.model))
        return make_space(self.config, graph, resources, pace)

    def _exported(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "original.onnx")
            export_onnx(self.task.model, self.task.example, path)
            return path.read_bytes()

    def calibrate(self, graph: Graph, space: Space) -> Evaluator:
        """Moments, the channels' order, and whether recalibrating BatchNorm helps."""
        search, task = self.config.search, self.task
        moments = self.shared.moments(graph, self.memory, self.folder, self.monitor.progress)
        orders = self.shared.orders(graph, moments)
        drift = quick = None
        if search.reconstruct and search.drift != "off":
            drift = Drift(task, graph, self.config.seed, memory=self.memory)
            if search.drift == "search":
                quick = Drift(task, graph, self.config.seed, QUICK_SAMPLES, QUICK_ROWS, self.memory)
        evaluator = Evaluator(task, graph, orders, moments, search.reconstruct, drift=drift, quick=quick)
        evaluator.precision = str(self._once("evaluation-precision", lambda: self.shared.precision(evaluator)))
        if search.recalibrate == "auto":
            evaluator.recalibrate = self._recalibration_helps(evaluator, space.fit(np.ones(len(space.names))))
        else:
            evaluator.recalibrate = search.recalibrate == "on"
        return evaluator

    def _recalibration_helps(self, evaluator: Evaluator, choice: Choice) -> bool:
        def compare() -> bool:
            losses, score = {}, self.shared.score(evaluator)
            for tried in (False, True):
                evaluator.recalibrate = tried
                losses[tried] = score(choice).loss
            return losses[True] < losses[False]

        return bool(self._once("recalibrate", compare))

    def search(self, graph: Graph, space: Space, evaluator: Evaluator) -> Problem:
        """Let the searcher propose policies."""
        search, best = self.config.search, -np.inf

        def observe(evaluation: Evaluation, proposals: int) -> None:
            nonlocal best
            best = max(best, evaluation.metric if evaluation.error is None else -np.inf)
            shown = f"best {self.task.objective.name} {100 * best:.2f} %" if best > -np.inf else "no policy works yet"
            self.monitor.progress(min(1.0, proposals / search.evaluations), f"{shown} before fine-tuning")

        reward = load_reward(search.reward)
        timed = getattr(reward, "needs_latency", False) and self.config.budget.latency is None
        bench = self._bench(graph) if timed else None
        probe = (lambda choice: {"latency": bench.ratio(choice) * bench.original_ms}) if bench else None
        scorer = self._elsewhere(self.config, evaluator) if self._elsewhere else None
        score, error = self.shared.score(evaluator, scorer), self.shared.site_error(evaluator)
        racing = search.race and searchers()[search.searcher].races and scorer is None
        problem = Problem(
            space, site_features(graph), score, reward, self.journal, observe, probe, error,
            self.shared.race(evaluator) if racing else None, self._study(), scorer.announce if scorer else None,
        )  # fmt: skip
        load_searcher(search.searcher)(problem, search.evaluations, self.config.seed)
        failed = [e for e in problem.evaluations if e.error is not None]
        if len(failed) == len(problem.evaluations):
            raise ConfigError(f"every evaluation failed; the first: {failed[0].error}")
        if failed:
            self.monitor.say(f"{len(failed)} of {len(problem.evaluations)} evaluations failed: {failed[0].error}")
        return problem

    def _study(self) -> StudyPlace:
        """Where a searcher's study is kept: in the run's folder, unless the user names a storage."""
        config, name = self.config, self.config.search.study_name
        stem = f"{Path(config.model.name).name} on {Path(config.data.name).name}"
        again = len(list(self.journal.records("correction"))) - 1
        if again > 0:  # under a corrected latency model the same proportions are other policies
            stem += f", search {again + 1}"
        if config.search.storage is None:
            return StudyPlace(str(self.folder / "study.log"), name or stem)
        said = to_dict(config)
        search = {k: v for k, v in said["search"].items() if k not in ("evaluations", "storage", "study_name")}
        same = [fingerprint(self.task.model), dict(self.task.splits.provenance), said["budget"], search, config.seed]
        identity = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:32]
        return StudyPlace(config.search.storage, name or f"{stem}, {identity[:8]}", identity, shared=True)

    def _original(self) -> Path:
        path = self.folder / "original.onnx"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(self.shared.original_onnx(self._exported))
        return path

    def _bench(self, graph: Graph, original_ms: float | None = None) -> Bench:
        """What measures policies on ONNX Runtime; what the original takes is measured once in a run."""
        known = self.journal.last("latency-scale")
        ms = original_ms if known is None else float(known["ms"])
        bench = Bench(self.task, graph, self._original(), self.config.latency_threads, ms, self.machine.measuring)
        if known is None:
            self.journal.append("latency-scale", ms=bench.original_ms)
        return bench

    def pace(self, graph: Graph) -> Pace | None:
        """What predicts, measures and promises latency, where it is limited."""
        asked = self.config.budget.latency
        if asked is None:
            return None
        bench, named = self._bench(graph), self.config.search.latency_model
        progress = self.monitor.progress
        if named is None or is_profile(named):
            path = self.folder / "profile.json" if named is None else Path(named)
            key = profile_key(bench, self.config.latency_threads, self.task)
            model = learn_latency(bench, graph, key, path, 0 if named else self.config.profile_seconds, progress)
            return Learned(model, bench, asked, self.journal)
        problem = latency_problem(bench, graph, self._original(), self.config, self.journal, self.task, progress)
        predictor = Predictor(load_latency_model(named), problem)
        if predictor.measures:
            return Device(predictor, problem, asked, self.journal)
        return Believed(predictor.name, predictor, bench, asked, self.journal)

    @property
    def epochs(self) -> float:
        """Epochs of fine-tuning: the user's, or what suits the data."""
        asked = self.config.finetune.epochs
        return asked if asked >= 0 else self.task.splits.epochs

    def promising(self, problem: Problem, pace: Pace | None) -> list[Evaluation]:
        """The best few; where latency is limited, of those that keep to it when measured. None: search again."""
        count = max(self.config.search.refine, self.config.finetune.candidates)
        if pace is None or not pace.measures:
            return problem.best(count)
        best = problem.best(count + SPARE)
        good = pace.fast_enough([e.choice for e in best], self.monitor.progress)
        return [e for e in best if e.choice in good][:count]

    def choose(self, found: list[Evaluation], evaluator: Evaluator) -> tuple[Choice, list[dict[str, Any]]]:
        """Refine the best policies, fine-tune the best of those briefly, and take the winner.

        Scores before training do not tell it; without training the best refined one is taken.
        """
        refined = self._refine(found, evaluator)
        best = sorted(refined, key=lambda choice: (-refined[choice].metric, refined[choice].loss))
        best = best[: self.config.finetune.candidates]
        share = self.config.finetune.trial_share
        if self.epochs == 0 or share == 0 or len(best) == 1:
            return best[0], [_candidate(c, refined[c], None, i == 0) for i, c in enumerate(best)]
        known = {tuple(r["choice"]): (r["loss"], r["metric"]) for r in self.journal.records("trial")}
        scores = []
        for index, choice in enumerate(best):
            if choice not in known:
                model = evaluator.pruned(choice)
                train(model, self.task, self._plan(share * self.epochs, model), self.task.model,
                      progress=lambda done, _, i=index: self.monitor.progress((i + done) / len(best)))  # type: ignore[misc]  # fmt: skip
                loss, metric = evaluate(model, self.task, self.task.splits.search)
                self.journal.append("trial", choice=list(choice), loss=loss, metric=metric)
                known[choice] = (loss, metric)
            scores.append(known[choice])
            top = max(metric for _, metric in scores)
            self.monitor.progress(
                (index + 1) / len(best), f"best {100 * top:.2f} % after {100 * share:.0f} % of the training"
            )
        winner = min(range(len(best)), key=lambda i: (-scores[i][1], scores[i][0]))
        return best[winner], [_candidate(c, refined[c], scores[i][1], i == winner) for i, c in enumerate(best)]

    def _refine(self, best: list[Evaluation], evaluator: Evaluator) -> dict[Choice, Score]:
        """The best policies with their scores as refined networks."""
        known = {tuple(r["choice"]): Score(r["loss"], r["metric"]) for r in self.journal.records("refined")}
        score_refined = self.shared.refined(evaluator)
        for index, found in enumerate(best):
            if found.choice not in known:
                score = known[found.choice] = score_refined(found.choice)
                self.journal.append("refined", choice=list(found.choice), loss=score.loss, metric=score.metric)
            self.monitor.progress((index + 1) / len(best), "refining the best policies")
        return {e.choice: known[e.choice] for e in best}

    def precision(self) -> str:
        """The precision of training that was chosen or asked for."""
        known = self.journal.last("precision")
        return str(known["found"]) if known else self.config.finetune.precision

    def _plan(self, epochs: float, model: nn.Module) -> Plan:
        plan = make_plan(self.config.finetune, self.task, epochs, self.config.seed)
        precision = asked_precision(self.config.finetune)
        if precision is None:
            precision = self._once("precision", lambda: fastest_precision(model, self.task, plan, self.task.model))
        return replace(plan, precision=precision)

    def finetune(self, model: nn.Module) -> nn.Module:
        """Train the chosen network for good, with checkpoints."""
        if self.epochs > 0:
            train(model, self.task, self._plan(self.epochs, model), self.task.model, self.folder / "checkpoint.pt",
                  lambda done, loss: self.monitor.progress(done, f"loss {loss:.3f}"))  # fmt: skip
        return model

    def export(self, model: nn.Module) -> Parity:
        """Write model.onnx and see that ONNX Runtime computes what torch does."""
        path, search = self.folder / "model.onnx", self.task.splits.search
        export_onnx(model, self.task.example, path)
        inputs, _ = search.fetch(torch.arange(min(PARITY_SAMPLES, len(search))))
        return check_parity(model.cpu(), path, inputs, Runner(path))

    def program(self, model: nn.Module) -> str | None:
        """Write program.json and see that it computes what the network does. The reason where there can be none."""
        search, path = self.task.splits.search, self.folder / "program.json"
        inputs, _ = search.fetch(torch.arange(min(PARITY_SAMPLES, len(search))))
        try:
            program = write_program(model, self.task.example)
            check_program(read_program(program, model.cpu().state_dict()), model.cpu(), inputs)
        except (ExportError, BundleError) as error:
            path.unlink(missing_ok=True)
            return str(error)
        write_text(path, json.dumps(program, separators=(",", ":")))
        return None

    def prove(self, space: Space, model: nn.Module) -> list[dict[str, Any]]:
        """Hold every limit against what was exported."""
        path, traced = self.folder / "model.onnx", trace(model.cpu(), nested.to(self.task.example, "cpu"))
        counted = count_onnx_macs(path, self.task.example)
        how = "counted in model.onnx" if counted >= traced.macs else "traced in the pruned network"
        found = {
            "macs": (max(counted, traced.macs), how),
            "size": (path.stat().st_size, "bytes of model.onnx"),
            "params": (sum(p.numel() for p in model.parameters()), "counted in the pruned network"),
            "memory": (traced.peak, "traced in the pruned network"),
        }
        proof = []
        for resource, limit in space.limits.items():
            if resource == "latency":  # measured after this, see `promised`
                continue
            value, how = found[resource]
            proof.append({"resource": resource, "unit": UNITS[resource], "limit": limit, "exported": value,
                          "met": value <= limit, "how": how})  # fmt: skip
        broken = [p for p in proof if not p["met"]]
        if broken:
            p = broken[0]
            raise ExportError(
                f"the exported model has {p['exported']:,.0f} {p['unit']}, over the limit of {p['limit']:,.0f}."
            )
        return proof

    def quantise(self) -> dict[str, Any] | None:
        """Write model.int8.onnx and time it. Where it cannot be made, the result says why, and the run goes on."""
        source, target = self.folder / "model.onnx", self.folder / INT8
        if not self.config.int8:
            return None
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:32]
        known = self.journal.last("int8")
        if known is None or known["of"] != digest or not (target.exists() or known["found"].get("error")):
            try:
                with replacing(target) as temporary:
                    found = self._quantised(source, temporary)
            except ExportError as error:
                target.unlink(missing_ok=True)
                found = {"error": str(error)}
                self.monitor.say(f"no {INT8}: {error}")
            self.journal.append("int8", of=digest, found=found)
            return found
        return dict(known["found"])

    def _quantised(self, source: Path, target: Path) -> dict[str, Any]:
        """What is known of the 8-bit model written to ``target``."""
        calibration, search = self.task.splits.calibration, self.task.splits.search
        count, inputs = min(INT8_SAMPLES, len(calibration)), nested.feeds(self.task.example)
        few = [torch.arange(start, min(start + 16, count)) for start in range(0, count, 16)]
        best, tried = fastest(
            source,
            target,
            [nested.feeds(calibration.fetch(indices)[0]) for indices in few],
            lambda path: onnx_metric(path, self.task.objective, search),
            inputs,
            self.config.latency_threads,
            self.monitor.progress,
            self.machine.measuring,
        )
        models = {"original": self.folder / "original.onnx", "final": source, "int8": target}
        with self.machine.measuring():
            times = measure(models, inputs, self.config.latency_threads, seed=self.config.seed,
                            progress=lambda share, note: self.monitor.progress(0.5 + share / 2, note))  # fmt: skip
        ratios = {
            key: dict(zip(("value", "low", "high"), times.ratio("int8", other), strict=True))
            for key, other in (("ratio", "original"), ("ratio_to_final", "final"))
        }
        return {
            "setting": best.name, "search": best.metric, "size": target.stat().st_size,
            "in_float": list(best.in_float), "layers": best.layers, "latency_ms": times.latencies["int8"].p10_ms,
            **ratios,
            "tried": [{"setting": t.name, "search": t.metric, "ratio": t.ratio, "in_float": len(t.in_float)}
                      for t in tried],
        }  # fmt: skip

    def promised(self, pace: Pace | None, chosen: Choice, latency: Measurement) -> dict[str, Any] | None:
        """Hold the limit on latency against what was measured; where it is missed, prepare for another search."""
        if pace is None:
            return None
        promise = pace.promise(self.folder / "model.onnx", chosen, latency)
        if not promise["met"]:
            measured, limit = (told("latency", promise[key]) for key in ("exported", "limit"))
            self.monitor.say(f"measured {measured}, over {limit}: searching again")
            (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return promise

    def measure(self) -> Measurement:
        """Time both networks side by side on one sample."""
        models = {"original": self.folder / "original.onnx", "final": self.folder / "model.onnx"}
        inputs = nested.feeds(self.task.example)
        threads, progress = self.config.latency_threads, self.monitor.progress
        seconds = 5.0 if self.config.budget.latency is None else PROMISE_SECONDS
        with self.machine.measuring():
            return measure(models, inputs, threads, seconds=seconds, seed=self.config.seed, progress=progress)

    def test(self, model: nn.Module) -> dict[str, float]:
        """The networks on the search split and, once, on the test split."""
        model = model.to(self.task.device)

        def score() -> dict[str, float]:
            scores = {}
            for part, split in (("search", self.task.splits.search), ("test", self.task.splits.test)):
                scores[f"original_{part}"] = self.shared.original_score(part, split)[1]
                scores[f"final_{part}"] = evaluate(model, self.task, split)[1]
            if self.config.int8 and (self.folder / INT8).exists():
                scores["int8_test"] = onnx_metric(self.folder / INT8, self.task.objective, self.task.splits.test)
            return scores

        scores = self._once("test", score)
        self.monitor.progress(1.0, f"{self.task.objective.name} {100 * scores['final_test']:.2f} % on the test split")
        return dict(scores)

    def stages(self) -> list[dict[str, Any]]:
        seconds: dict[str, float] = {}
        for record in self.journal.records("stage"):
            seconds[record["name"]] = seconds.get(record["name"], 0.0) + record["seconds"]
        return [{"name": name, "seconds": round(total, 2)} for name, total in seconds.items()]

    def deliver(self, model: nn.Module, policy: Policy, problem: Problem, summary: dict[str, Any]) -> Result:
        """Write the rest of the bundle; result.json comes last but for the reports made of it."""
        from amc.reports import write_reports

        bundle.save_weights(model, self.folder / "model.safetensors")
        policy.save(self.folder / "policy.json")
        write_json(self.folder / "result.json", summary)
        write_reports(self.folder)
        bundle.seal(self.folder)
        sweep(self.folder)
        self.journal.append("done")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return Result(model, policy, tuple(problem.evaluations), summary, self.folder)


def make_space(config: Config, graph: Graph, resources: ResourceModel, pace: Pace | None = None) -> Space:
    """Legal widths under the configuration's budget. Raises BudgetError when it cannot be met.

    Without ``pace`` a limit on latency is left out. Where latency is all that is limited, only widths at which it
    changes are legal.
    """
    search, asked = config.search, replace(config.budget, latency=None)
    settings = tuple(legal_widths(s.channels, search.min_keep, search.channel_step) for s in graph.sites)
    names = tuple(s.name for s in graph.sites)
    original = resources.cost([s.channels for s in graph.sites])
    others = asked != BudgetConfig() or config.budget.latency is None
    limits = Budget.from_config(asked).limits(original) if others else {}
    if pace is None:
        return Space(names, settings, resources, limits)
    if not others:
        settings = steps(pace.predict, settings)
    costs = Paced(resources, pace.within(settings), pace.factor)
    return Space(names, settings, costs, {**limits, "latency": pace.limit_ms})


def _candidate(choice: Choice, before: Score, after: float | None, chosen: bool) -> dict[str, Any]:
    return {"choice": list(choice), "before": before.metric, "after": after, "chosen": chosen}
