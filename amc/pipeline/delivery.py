"""The stages of a run from the chosen policy on: train, export, prove, measure, test, and fill the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amc.deploy import bundle
from amc.deploy.export import Parity, check_parity, check_program, count_onnx_macs, export_pruned, read_onnx
from amc.deploy.fvcore_macs import count_with_fvcore
from amc.deploy.program import read_program, write_program
from amc.deploy.result import read_result
from amc.errors import BundleError, DataError, ExportError
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.problem import recorded
from amc.evaluation.reward import Evaluation
from amc.graph.build import Graph
from amc.graph.channels import Kept
from amc.graph.narrowing import narrowed
from amc.graph.trace import Trace, trace, unprovable
from amc.latency import Measurement, Runner, onnx_metric
from amc.latency.constraint import LatencyConstraint
from amc.latency.int8 import fastest
from amc.latency.verification import VerifiedLatency
from amc.operators.branches import find_branches
from amc.operators.policy import Policy
from amc.pipeline.record import Record
from amc.pipeline.result import Result
from amc.pipeline.trust import file_code, is_own_file
from amc.runtime.files import replacing, sweep, write_json, write_text
from amc.space.budget import UNITS, Space, format_cost
from amc.space.sites import Choice
from amc.task import batches, evaluate, nested
from amc.task.data import sample
from amc.train import Phase, train

LOSSES = 20
"""How often a training's loss is recorded."""
PHASE_SEEDS = 7919
"""By so much the seeds of two phases of a schedule differ: they see their samples in another order."""
PARITY_SAMPLES = 64
INT8, INT8_SAMPLES = "model.int8.onnx", 256
VERIFY_SECONDS = 20.0
"""Longest that a limit on latency is measured for; less where the ratio is known well enough."""
VERIFY_TRIES = 3
"""So often it is measured on a machine that is busy with something else."""


def _is_own(path: Path, known: dict[str, Any]) -> bool:
    """Whether a file is as this user has made it, by the journal's record of it."""
    return path.exists() and is_own_file(_sha256(path), known.get("code"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class LossReport:
    """Shows how far a training is, and journals its loss now and then."""

    def __init__(self, record: Record, before: float, share: float) -> None:
        """The training is a ``share`` of all training, of which the share ``before`` is done."""
        self._record, self._before, self._share, self._told = record, before, share, 0

    def __call__(self, done: float, loss: float) -> None:
        """So much of this training is done, with such a running loss."""
        overall = self._before + self._share * done
        self._record.step(overall, f"loss {loss:.3f}")
        if int(LOSSES * done) > self._told:
            self._told = int(LOSSES * done)
            self._record.journal.append("training", done=round(overall, 4), loss=loss)


class Delivery:
    """From the chosen policy to the bundle."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def _drop_checkpoints(self) -> None:
        for path in self.record.folder.glob("checkpoint*.pt"):
            path.unlink(missing_ok=True)

    def finished(self) -> Result:
        """The result of a run that has ended already."""
        record = self.record
        model = bundle.load(record.folder, record.task.model, record.task.example)
        policy = Policy.load(record.folder / "policy.json")
        evaluations = tuple(recorded(record.journal))
        return Result(model, policy, evaluations, read_result(record.folder / "result.json"), record.folder)

    def finetune(self, phases: Sequence[Phase], evaluator: Evaluator, graph: Graph) -> nn.Module:
        """Prune and train, phase by phase. Every phase has a checkpoint, so that none is trained again."""
        first = phases[0].choice
        model, had = evaluator.pruned(first), evaluator.kept(first)
        for number, phase in enumerate(phases):
            kept = evaluator.kept(phase.choice)
            if number > 0:
                model, had = narrowed(model, graph.layers, had, kept), kept
            if phase.epochs > 0:
                plan = self.record.plan(phase.epochs, model)
                plan = replace(plan, seed=plan.seed + PHASE_SEEDS * number)
                name = "checkpoint.pt" if number + 1 == len(phases) else f"checkpoint.{number + 1}.pt"
                share = (number / len(phases), 1 / len(phases))
                train(model, self.record.task, plan, self.record.task.model, self.record.folder / name,
                      LossReport(self.record, *share))  # fmt: skip
        return model

    def export(self, model: nn.Module, graph: Graph, kept: Kept) -> tuple[Parity, frozenset[str]]:
        """Write model.onnx and see that ONNX Runtime computes what torch does; the layers that are not in it, too."""
        record = self.record
        path, search = record.folder / "model.onnx", record.task.splits.search
        gone = export_pruned(model, record.task.example, path, graph, kept)
        inputs, _ = search.fetch(torch.arange(min(PARITY_SAMPLES, len(search))))
        return check_parity(model.cpu(), inputs, Runner(path)), gone

    def program(self, model: nn.Module) -> str | None:
        """Write program.json and see that it computes what the network does. The reason where there can be none."""
        record = self.record
        search, path = record.task.splits.search, record.folder / "program.json"
        inputs, _ = search.fetch(torch.arange(min(PARITY_SAMPLES, len(search))))
        try:
            program = write_program(model, record.task.example)
            check_program(read_program(program, model.cpu().state_dict()), model.cpu(), inputs)
        except (ExportError, BundleError) as error:
            path.unlink(missing_ok=True)
            return str(error)
        write_text(path, json.dumps(program, separators=(",", ":")))
        return None

    def _traced(self, model: nn.Module) -> Trace:
        return trace(model.cpu(), nested.to(self.record.task.example, "cpu"))

    def count_macs(self, model: nn.Module) -> dict[str, Any]:
        """MACs of the delivered network, counted by amc and, independently, by fvcore."""
        traced = self._traced(model)
        theirs = count_with_fvcore(model, self.record.task.example)
        return {
            "amc": traced.macs,
            "fvcore": theirs.macs,
            "uncounted": list(traced.uncounted),
            "fvcore_uncounted": list(theirs.uncounted),
            "disagreement": theirs.disagreement(traced.by_operator),
        }

    def prove(self, space: Space, model: nn.Module, graph: Graph, gone: frozenset[str]) -> list[dict[str, Any]]:
        """Hold every limit against what was exported. Of the layers ``gone`` torch holds one zeroed channel."""
        record = self.record
        path, traced = record.folder / "model.onnx", self._traced(model)
        counted = count_onnx_macs(path, record.task.example)
        from_file = gone or counted >= traced.macs
        held = [p for name, p in model.named_parameters() if gone.isdisjoint((name, name.rpartition(".")[0]))]
        found = {
            "macs": (counted, "counted in model.onnx") if from_file else (traced.macs, "traced in the pruned network"),
            "size": (path.stat().st_size, "bytes of model.onnx"),
            "params": (sum(p.numel() for p in held), "counted in the pruned network"),
            "memory": (traced.peak, "traced in the pruned network"),
        }
        if "branches" in space.limits:
            found["branches"] = (len(find_branches(read_onnx(path), graph)), "counted in model.onnx")
        proof: list[dict[str, Any]] = []
        for resource, limit in space.limits.items():
            if resource == "latency":  # measured after this, see `verify`
                continue
            value, how = found[resource]
            unproved = unprovable(traced) if resource == "macs" else None
            proof.append({"resource": resource, "unit": UNITS[resource], "limit": limit, "exported": value,
                          "met": value <= limit and unproved is None, "how": unproved or how})  # fmt: skip
        broken = [p for p in proof if p["exported"] > p["limit"]]
        if broken:
            p = broken[0]
            raise ExportError(
                f"the exported model has {p['exported']:,.0f} {p['unit']}, over the limit of {p['limit']:,.0f}."
            )
        return proof

    def quantise(self) -> dict[str, Any] | None:
        """Write model.int8.onnx and time it. Where it cannot be made, the result says why, and the run goes on."""
        record = self.record
        source, target = record.folder / "model.onnx", record.folder / INT8
        if not record.config.int8:
            return None
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:32]
        known = record.journal.last("int8")
        if known is None or known["of"] != digest or not (known["found"].get("error") or _is_own(target, known)):
            try:
                with replacing(target) as temporary:
                    found = self._quantised(source, temporary)
            except ExportError as error:
                target.unlink(missing_ok=True)
                found = {"error": str(error)}
                record.monitor.say(f"no {INT8}: {error}")
            code = file_code(_sha256(target)) if target.exists() else None
            record.journal.append("int8", of=digest, found=found, code=code)
            return found
        return dict(known["found"])

    def _quantised(self, source: Path, target: Path) -> dict[str, Any]:
        """What is known of the 8-bit model written to ``target``."""
        record = self.record
        search, inputs = record.task.splits.search, nested.feeds(record.task.example)
        calibration = sample(record.task.splits.calibration, INT8_SAMPLES, record.config.seed)
        best, tried = fastest(
            source,
            target,
            [nested.feeds(images) for images, _ in batches(calibration, 16)],
            lambda path: onnx_metric(path, record.task.objective, search),
            inputs,
            record.config.latency_threads,
            record.step,
            record.lock.exclusive,
            record.instruments,
        )
        models = {"original": record.folder / "original.onnx", "final": source, "int8": target}
        with record.lock.exclusive():
            times = record.instruments.measure(
                models, inputs, record.config.latency_threads, record.instruments.limited(5.0),
                seed=record.config.seed, progress=lambda share, note: record.step(0.5 + share / 2, note),
            )  # fmt: skip
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

    def verify(
        self, latency: LatencyConstraint | None, chosen: Choice, measured: Measurement
    ) -> VerifiedLatency | None:
        """Hold the limit on latency, if there is one, against what was measured."""
        return latency.proof.verify(self.record.folder / "model.onnx", chosen, measured) if latency else None

    def give_up(self, verified: VerifiedLatency, obstacle: str | None) -> bool:
        """Whether a network that misses the limit on latency is delivered: there is an obstacle to another search."""
        record = self.record
        measured, limit = format_cost("latency", verified.ms), format_cost("latency", verified.limit_ms)
        if obstacle is None:
            record.monitor.say(f"measured {measured}, over {limit}: searching again")
            self._drop_checkpoints()
        else:
            record.monitor.say(f"measured {measured}, over {limit}, and {obstacle}: this network is delivered")
        return obstacle is not None

    def measure(self, latency: LatencyConstraint | None = None) -> Measurement:
        """Time both networks side by side on one sample; again on a noisy machine, where a limit depends on it."""
        record = self.record
        models = {"original": record.folder / "original.onnx", "final": record.folder / "model.onnx"}
        inputs = nested.feeds(record.task.example)
        threads, progress = record.config.latency_threads, record.step
        seconds = record.instruments.limited(5.0 if latency is None else VERIFY_SECONDS)
        for _ in range(VERIFY_TRIES):
            with record.lock.exclusive():
                found = record.instruments.measure(
                    models, inputs, threads, seconds, seed=record.config.seed, progress=progress
                )
            if latency is None or not latency.proof.disturbed(found):
                break
        return found

    def test(self, model: nn.Module, policy: Policy) -> dict[str, float]:
        """Both on the search split and, once, on the test split. The network is kept where that cannot be read."""
        record = self.record
        model = model.to(record.task.device)

        def score() -> dict[str, float]:
            scores = {}
            for part, split in (("search", record.task.splits.search), ("test", record.task.splits.test)):
                scores[f"original_{part}"] = record.memo.original_score(part, split)[1]
                scores[f"final_{part}"] = evaluate(model, record.task, split)[1]
            if record.config.int8 and (record.folder / INT8).exists():
                scores["int8_test"] = onnx_metric(record.folder / INT8, record.task.objective, record.task.splits.test)
            return scores

        try:
            scores = record.once("test", score)
        except DataError as error:
            bundle.save_weights(model, record.folder / "model.safetensors")
            policy.save(record.folder / "policy.json")
            bundle.seal(record.folder)
            raise DataError(
                f"{str(error).rstrip('.')}. The network is finished and in {record.folder} (amc.load reads it), but "
                "not tested: mend the data and go on with --resume."
            ) from error
        record.step(1.0, f"{record.task.objective.name} {100 * scores['final_test']:.2f} % on the test split")
        return dict(scores)

    def deliver(
        self, model: nn.Module, policy: Policy, evaluations: Sequence[Evaluation], summary: dict[str, Any]
    ) -> Result:
        """Write the rest of the bundle; result.json comes last but for the reports made of it."""
        record = self.record
        from amc.reports import write_reports

        bundle.save_weights(model, record.folder / "model.safetensors")
        policy.save(record.folder / "policy.json")
        write_json(record.folder / "result.json", summary)
        write_reports(record.folder)
        bundle.seal(record.folder)
        sweep(record.folder)
        record.journal.append("done")
        self._drop_checkpoints()
        return Result(model, policy, tuple(evaluations), summary, record.folder)
