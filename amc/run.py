"""The whole flow: search → prune → choose → fine-tune → export → prove → measure → bundle. Open this first."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from amc import bundle
from amc.budget import UNITS, Budget, Space
from amc.config import Config, from_yaml, to_dict
from amc.errors import BundleError, ConfigError, ExportError
from amc.evaluate import Evaluator
from amc.export import Parity, check_parity, count_onnx, export_onnx, file_layout
from amc.files import write_json, write_text
from amc.finetune import Plan, fastest_precision, make_plan, train
from amc.graph import Graph, build_graph
from amc.importance import load_criterion, rank
from amc.journal import Journal
from amc.latency import LatencyProbe, Measurement, Runner, measure
from amc.monitor import Monitor, Silent
from amc.policy import Choice, Policy, fingerprint, legal_widths, make_policy
from amc.problem import Problem, site_features
from amc.reconstruct import collect, readers
from amc.resources import ResourceModel
from amc.reward import Evaluation, load_reward
from amc.search import load_searcher
from amc.summary import Findings, summarise
from amc.task import Task, evaluate, load_data, load_model, make_task

PARITY_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives."""

    model: nn.Module
    """The pruned, fine-tuned network: an ordinary module, in evaluation mode."""
    policy: Policy
    evaluations: tuple[Evaluation, ...]
    summary: Mapping[str, Any]
    """What result.json holds."""
    folder: Path

    def save(self, folder: str | Path) -> Path:
        """Copy the bundle to another folder."""
        import shutil

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in bundle.FILES:
            shutil.copyfile(self.folder / name, target / name)
        return target


def run(config: Config, resume: str | Path | None = None, monitor: Monitor | None = None) -> Result:
    """Do what the configuration says; ``resume`` goes on with the run in a folder, by that run's configuration."""
    if resume is not None:
        folder = Path(resume)
        if not (folder / "config.yaml").is_file():
            raise BundleError(f"{folder} holds no run to resume (there is no config.yaml).")
        config = from_yaml(folder / "config.yaml")
    else:
        check(config)
        folder = new_folder(config)
    return compress_task(open_task(config), config, folder, monitor)


def check(config: Config) -> None:
    """Raise AmcError for what can be seen to be wrong before anything is loaded."""
    Budget.from_config(config.budget).limits(dict.fromkeys(UNITS, 1e12))
    load_searcher(config.search.searcher)
    load_criterion(config.search.criterion)
    load_reward(config.search.reward)


def open_task(config: Config) -> Task:
    """The task that the configuration names: data, network and device."""
    if config.threads:
        torch.set_num_threads(config.threads)
    splits = load_data(config.data, config.seed)
    images, _ = splits.search.fetch(torch.tensor([0]))
    model = load_model(config.model.name, config.model.weights, images.shape[1], splits.classes, config.data.name)
    return make_task(f"{config.model.name} on {splits.source}", model, splits, pick_device(config.device))


def pick_device(name: str) -> torch.device:
    """'auto' is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} is not to be had here: {reason}") from None
    return device


def new_folder(config: Config) -> Path:
    """A folder for a new run; one that holds a run already is refused."""
    if config.out is None:
        words = [config.model.name, config.data.name.partition(":")[0]]
        stem = "-".join("".join(c if c.isalnum() else "-" for c in Path(w).name) for w in words)
        number = 1
        while Path("amc-runs", f"{stem}-{number}").exists():
            number += 1
        return Path("amc-runs", f"{stem}-{number}")
    folder = Path(config.out)
    if (folder / "journal.jsonl").exists():
        raise BundleError(f"{folder} holds a run already: go on with --resume {folder}, or name another --out.")
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder} is a file: name a folder with --out.")
    return folder


def compress_task(task: Task, config: Config, folder: Path, monitor: Monitor | None = None) -> Result:
    """The flow on a task. Whatever the folder's journal holds of an earlier attempt is not done again."""
    torch.manual_seed(config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    monitor = monitor or Silent()
    monitor.say(f"{task.name}; everything goes to {folder} (after an interruption: --resume {folder})")
    write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    with Journal(folder / "journal.jsonl") as journal:
        flow = _Flow(task, config, folder, journal, monitor)
        with flow.stage("inspect"):
            graph = build_graph(task.model, task.example)
            space = flow.space(graph)
        with flow.stage("calibrate"):
            evaluator = flow.calibrate(graph, space)
        with flow.stage("search"):
            problem = flow.search(graph, space, evaluator)
        with flow.stage("choose"):
            chosen, candidates = flow.choose(problem, evaluator)
        with flow.stage("fine-tune"):
            model = flow.finetune(evaluator.pruned(chosen))
        with flow.stage("export"):
            parity = flow.export(model)
            proof = flow.prove(space, chosen)
        with flow.stage("measure"):
            latency = flow.measure()
        with flow.stage("test"):
            scores = flow.test(model)
        policy = make_policy(graph, fingerprint(task.model), evaluator.kept(chosen))
        found = Findings(
            original=space.costs(space.full),
            final={**space.costs(chosen), "size": float((folder / "model.onnx").stat().st_size)},
            limits=space.limits,
            evaluations=len(problem.evaluations),
            recalibrate=evaluator.recalibrate,
            pruned_metric=flow.pruned_metric,
            candidates=candidates,
            proof=proof,
            parity=parity,
            latency=latency,
            scores=scores,
            stages=flow.stages(),
        )
        return flow.deliver(model, policy, problem, summarise(task, config, policy, found))


class _Flow:
    """The stages of one run, with what they share: the task, the folder, the journal."""

    def __init__(self, task: Task, config: Config, folder: Path, journal: Journal, monitor: Monitor) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.pruned_metric = 0.0
        self.journal, self.monitor = journal, monitor
        self._bind()

    def _bind(self) -> None:
        """A folder belongs to one network, one configuration and one set of splits."""
        plain = {k: v for k, v in to_dict(self.config).items() if k not in ("out", "threads", "latency_threads")}
        identity = {
            "fingerprint": fingerprint(self.task.model),
            "config": plain,
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

    def space(self, graph: Graph) -> Space:
        """Legal widths under the budget, with exact costs."""
        original = self.folder / "original.onnx"
        if not original.exists():
            export_onnx(self.task.model, self.task.example, original)
        resources = ResourceModel(graph, self.task.model, file_layout(original, graph, self.task.model))
        search = self.config.search
        settings = tuple(legal_widths(s.channels, search.min_keep, search.channel_step) for s in graph.sites)
        limits = Budget.from_config(self.config.budget).limits(resources.cost([s.channels for s in graph.sites]))
        return Space(tuple(s.name for s in graph.sites), settings, resources, limits)

    def calibrate(self, graph: Graph, space: Space) -> Evaluator:
        """Moments, the channels' order, and whether recalibrating BatchNorm helps."""
        search, task = self.config.search, self.task
        moments = collect(task, readers(graph, task.model), self.config.seed, progress=self.monitor.progress)
        orders = rank(search.criterion, graph, task.model, moments)
        evaluator = Evaluator(task, graph, orders, moments, search.reconstruct)
        if search.recalibrate == "auto":
            evaluator.recalibrate = self._recalibration_helps(evaluator, space.fit(np.ones(len(space.names))))
        else:
            evaluator.recalibrate = search.recalibrate == "on"
        return evaluator

    def _recalibration_helps(self, evaluator: Evaluator, choice: Choice) -> bool:
        known = self.journal.last("recalibrate")
        if known is None:
            losses = {}
            for tried in (False, True):
                evaluator.recalibrate = tried
                losses[tried] = evaluator(choice).loss
            self.journal.append("recalibrate", helps=losses[True] < losses[False])
            known = self.journal.last("recalibrate")
        assert known is not None
        return bool(known["helps"])

    def search(self, graph: Graph, space: Space, evaluator: Evaluator) -> Problem:
        """Let the searcher propose policies."""
        search, best = self.config.search, -np.inf

        def observe(evaluation: Evaluation, proposals: int) -> None:
            nonlocal best
            best = max(best, evaluation.metric if evaluation.error is None else -np.inf)
            shown = f"best {self.task.objective.name} {100 * best:.2f} %" if best > -np.inf else "no policy works yet"
            self.monitor.progress(proposals / search.evaluations, f"{shown} before fine-tuning")

        probe = self._probe(graph, evaluator) if search.reward == "error-latency" else None
        reward = load_reward(search.reward)
        problem = Problem(space, site_features(graph), evaluator, reward, self.journal, observe, probe, evaluator.error)
        load_searcher(search.searcher)(problem, search.evaluations, self.config.seed)
        failed = [e for e in problem.evaluations if e.error is not None]
        if len(failed) == len(problem.evaluations):
            raise ConfigError(f"every evaluation failed; the first: {failed[0].error}")
        if failed:
            self.monitor.say(f"{len(failed)} of {len(problem.evaluations)} evaluations failed: {failed[0].error}")
        return problem

    def _probe(self, graph: Graph, evaluator: Evaluator) -> Callable[[Choice], dict[str, float]]:
        """Measures a policy's latency on ONNX Runtime."""
        original = self.folder / "original.onnx"
        layout = file_layout(original, graph, self.task.model)
        probe = LatencyProbe(original, layout, self.task.example.cpu().numpy(), self.config.latency_threads)
        return lambda choice: {"latency": probe(evaluator.kept(choice))}

    @property
    def epochs(self) -> float:
        """Epochs of fine-tuning: the user's, or what suits the data."""
        asked = self.config.finetune.epochs
        return asked if asked >= 0 else self.task.splits.epochs

    def choose(self, problem: Problem, evaluator: Evaluator) -> tuple[Choice, list[dict[str, Any]]]:
        """Fine-tune the best few briefly and take the winner: scores before training do not tell it."""
        best = problem.best(self.config.finetune.candidates)
        share = self.config.finetune.trial_share
        if self.epochs == 0 or share == 0 or len(best) == 1:
            return best[0].choice, [_candidate(e, None, i == 0) for i, e in enumerate(best)]
        known = {tuple(r["choice"]): (r["loss"], r["metric"]) for r in self.journal.records("trial")}
        scores = []
        for index, candidate in enumerate(best):
            if candidate.choice not in known:
                model = evaluator.pruned(candidate.choice)
                train(model, self.task, self._plan(share * self.epochs, model), self.task.model,
                      progress=lambda done, _, i=index: self.monitor.progress((i + done) / len(best)))  # type: ignore[misc]  # fmt: skip
                loss, metric = evaluate(model, self.task, self.task.splits.search)
                self.journal.append("trial", choice=list(candidate.choice), loss=loss, metric=metric)
                known[candidate.choice] = (loss, metric)
            scores.append(known[candidate.choice])
            top = max(metric for _, metric in scores)
            self.monitor.progress(
                (index + 1) / len(best), f"best {100 * top:.2f} % after {100 * share:.0f} % of the training"
            )
        winner = min(range(len(best)), key=lambda i: (-scores[i][1], scores[i][0]))
        told = [_candidate(e, scores[i][1], i == winner) for i, e in enumerate(best)]
        return best[winner].choice, told

    def _plan(self, epochs: float, model: nn.Module) -> Plan:
        plan = make_plan(self.config.finetune, self.task, epochs, self.config.seed)
        precision = {"float32": "channels_last", "bfloat16": "bfloat16"}.get(self.config.finetune.precision)
        if precision is None:
            known = self.journal.last("precision")
            precision = known["name"] if known else fastest_precision(model, self.task, plan, self.task.model)
            if known is None:
                self.journal.append("precision", name=precision)
        return replace(plan, precision=precision)

    def finetune(self, model: nn.Module) -> nn.Module:
        """Train the chosen network for good, with checkpoints."""
        self.pruned_metric = evaluate(model, self.task, self.task.splits.search)[1]
        if self.epochs > 0:
            train(model, self.task, self._plan(self.epochs, model), self.task.model, self.folder / "checkpoint.pt",
                  lambda done, loss: self.monitor.progress(done, f"loss {loss:.3f}"))  # fmt: skip
        return model

    def export(self, model: nn.Module) -> Parity:
        """Write model.onnx and see that ONNX Runtime computes what torch does."""
        path, search = self.folder / "model.onnx", self.task.splits.search
        export_onnx(model, self.task.example, path)
        images, _ = search.fetch(torch.arange(min(PARITY_SAMPLES, len(search))))
        return check_parity(model.cpu(), path, images, Runner(path))

    def prove(self, space: Space, chosen: Choice) -> list[dict[str, Any]]:
        """Hold every limit against what was exported."""
        counted = count_onnx(self.folder / "model.onnx", self.task.example)
        predicted = space.costs(chosen)
        proof = []
        for resource, limit in space.limits.items():
            if resource in ("macs", "size"):
                value, how = (
                    counted[resource],
                    "counted in model.onnx" if resource == "macs" else "bytes of model.onnx",
                )
            else:
                value, how = predicted[resource], "computed from the widths"
            proof.append({"resource": resource, "unit": UNITS[resource], "limit": limit, "exported": value,
                          "met": value <= limit, "how": how})  # fmt: skip
        broken = [p for p in proof if not p["met"]]
        if broken:
            p = broken[0]
            raise ExportError(
                f"the exported model has {p['exported']:,.0f} {p['unit']}, over the limit of {p['limit']:,.0f}."
            )
        return proof

    def measure(self) -> Measurement:
        """Time both networks side by side on one image."""
        models = {"original": self.folder / "original.onnx", "final": self.folder / "model.onnx"}
        inputs = self.task.example.cpu().numpy()
        return measure(
            models, inputs, self.config.latency_threads, seed=self.config.seed, progress=self.monitor.progress
        )

    def test(self, model: nn.Module) -> dict[str, float]:
        """Both networks on the search split and, once, on the test split."""
        known = self.journal.last("test")
        if known is None:
            model = model.to(self.task.device)
            scores = {
                f"{name}_{part}": evaluate(network, self.task, split)[1]
                for part, split in (("search", self.task.splits.search), ("test", self.task.splits.test))
                for name, network in (("original", self.task.model), ("final", model))
            }
            self.journal.append("test", scores=scores)
            known = {"scores": scores}
        scores = known["scores"]
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
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return Result(model, policy, tuple(problem.evaluations), summary, self.folder)


def _candidate(evaluation: Evaluation, after: float | None, chosen: bool) -> dict[str, Any]:
    return {"choice": list(evaluation.choice), "before": evaluation.metric, "after": after, "chosen": chosen}
