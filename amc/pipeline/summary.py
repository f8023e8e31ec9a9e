"""The content of result.json, and notes for the user. The fields are described in docs/result.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc.config import Config, command_line, public, to_dict
from amc.deploy.export import Parity
from amc.deploy.result import FORMAT, VERSION
from amc.latency import Measurement
from amc.latency.int8 import TOLERANCE
from amc.operators.channels import ChannelSetting
from amc.operators.operator import PolicySetting
from amc.operators.policy import Policy
from amc.runtime.provenance import cpu_flags, environment, vector_width
from amc.space.budget import format_cost, is_absolute, parse_limit
from amc.task import Task


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of a run's stages."""

    original: Mapping[str, float]
    """Costs by resource."""
    final: Mapping[str, float]
    limits: Mapping[str, float]
    evaluations: int
    recalibrate: bool
    pruned_metric: float
    candidates: Sequence[Mapping[str, Any]]
    proof: Sequence[Mapping[str, Any]]
    parity: Parity
    latency: Measurement
    prediction: Mapping[str, Any] | None
    """The report on the latency model; None without a limit on latency."""
    scores: Mapping[str, float]
    """Metric of the ``original`` and the ``final`` network on ``search`` and ``test``."""
    stages: Sequence[Mapping[str, Any]]
    precision: str
    """Precision of training."""
    epochs: float
    """Epochs of training, each over the samples that were trained on."""
    macs: Mapping[str, Any]
    """MACs of the delivered network, counted by amc and by fvcore."""
    int8: Mapping[str, Any] | None = None
    """The entry about model.int8.onnx, or the reason for having none (``error``)."""
    unwritten: str | None = None
    """Why there is no program.json; None if there is one."""
    obstacle: str | None = None
    """Why the limit on latency is not met; None if it is."""
    sensitivity: Sequence[Mapping[str, Any]] | None = None
    """Estimated errors of all sites at all settings."""
    layers: Sequence[Mapping[str, Any]] = ()
    """Every layer before and after."""
    answers: Mapping[str, Any] | None = None
    """Where the networks answer differently."""


def summarise(task: Task, config: Config, policy: Policy, found: Findings) -> dict[str, Any]:
    """The content of result.json."""
    plain = _nameless(public(to_dict(config)))
    summary: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "task": task.name,
        "model": {"name": plain["model"]["name"], "fingerprint": policy.fingerprint},
        "data": {"source": task.splits.source, "splits": dict(task.splits.provenance)},
        "metric": task.objective.name,
        "budget": {"asked": {k: v for k, v in plain["budget"].items() if v is not None}, "limits": dict(found.limits)},
        "original": _row("original", found.original, found),
        "pruned": {"search": found.pruned_metric},
        "final": _row("final", found.final, found),
        "trained_original": _trained_original(found.scores),
        "differences": {
            "given": _difference("original", found.scores),
            "trained_on": _difference("trained_original", found.scores),
        },
        "latency": {**_latency(found.latency), "prediction": found.prediction},
        "int8": _int8(found),
        "proof": list(found.proof),
        "macs": dict(found.macs),
        "parity": asdict(found.parity),
        "sites": [_site(name, setting) for name, setting in policy.settings.items()],
        "search": {
            "searcher": plain["search"]["searcher"],
            "evaluations": found.evaluations,
            "criterion": plain["search"]["criterion"],
            "recalibrate": found.recalibrate,
            "reward": plain["search"]["reward"],
        },
        "candidates": list(found.candidates),
        "finetune": {"precision": found.precision, "recipe": config.finetune.recipe, "epochs": found.epochs},
        "stages": list(found.stages),
        "environment": environment(),
        "config": plain,
        "command": command_line(plain),
        "sensitivity": found.sensitivity,
        "layers": list(found.layers),
        "answers": found.answers,
    }
    failed = None if found.int8 is None else found.int8.get("error")
    missing = [f"There is no program.json: {found.unwritten}"] if found.unwritten else []
    missed = [_missed(summary, proof, found.obstacle) for proof in found.proof if is_missed(proof)]
    others = [*trained_notes(summary), *_macs_notes(found), *int8_notes(summary, failed), *missing]
    return {**summary, "notes": [*missed, *notes(summary), *others]}


_PATHS = (
    ("model", "name"), ("model", "weights"), ("data", "name"), ("data", "root"), ("search", "searcher"),
    ("search", "criterion"), ("search", "reward"), ("search", "latency_model"), ("finetune", "schedule"),
    ("finetune", "recover"),
)  # fmt: skip


def _nameless(plain: dict[str, Any]) -> dict[str, Any]:
    """The configuration with only the last part of every path, since folders may be private."""
    shown = {**plain, **{part: dict(plain[part]) for part, _ in _PATHS}}
    for part, key in _PATHS:
        value = shown[part][key]
        if isinstance(value, str):
            kind, colon, path = value.partition(":")
            prefixed = colon and not value.partition(".py:")[1] and kind in ("imagefolder", "torchvision", "timm")
            shown[part][key] = f"{kind}:{Path(path).name}" if prefixed else Path(value).name
    if not isinstance(plain["search"]["operators"], str):
        shown["search"]["operators"] = [Path(name).name for name in plain["search"]["operators"]]
    if "weights" in plain["finetune"]["recover_options"]:
        named = Path(str(plain["finetune"]["recover_options"]["weights"])).name
        shown["finetune"]["recover_options"] = {**plain["finetune"]["recover_options"], "weights": named}
    return {**shown, "objective": Path(plain["objective"]).name, "out": None, "cache": None, "log": None}


def _site(name: str, setting: PolicySetting) -> dict[str, Any]:
    """The kept size of a site. For sites other than channel groups, also the entry of policy.json."""
    kept = {"name": name, "width": setting.size, "of": setting.of}
    return kept if isinstance(setting, ChannelSetting) else {**kept, "setting": setting.to_json()}


def _row(name: str, costs: Mapping[str, float], found: Findings) -> dict[str, float]:
    scores = {part: found.scores[f"{name}_{part}"] for part in ("search", "test")}
    return {**scores, **costs, "latency_ms": found.latency.latencies[name].p10_ms}


def _trained_original(scores: Mapping[str, float]) -> dict[str, float] | None:
    """Scores of the original after further training; None if it was not trained."""
    known = {part: scores.get(f"trained_original_{part}") for part in ("search", "test")}
    return {part: score for part, score in known.items() if score is not None} or None


def _difference(network: str, scores: Mapping[str, float]) -> dict[str, float] | None:
    """The gain of the delivered network over another; None if there is no such network."""
    if f"{network}_test" not in scores:
        return None
    return {part: scores[f"final_{part}"] - scores[f"{network}_{part}"] for part in ("search", "test")}


def _latency(measured: Measurement) -> dict[str, Any]:
    times = measured.latencies
    by_key = {key: {name: getattr(times[name], key) for name in times} for key in ("min_ms", "p10_ms", "median_ms")}
    final = times["final"]
    ratio = {"value": final.ratio, "low": final.ratio_low, "high": final.ratio_high}
    return {"threads": measured.threads, "rounds": measured.rounds, **by_key, "ratio": ratio}


def _macs_notes(found: Findings) -> list[str]:
    """Notes about a limit on MACs that is not proved, and about an unexplained difference to fvcore's count."""
    told = [f"{p['how'][0].upper()}{p['how'][1:]}." for p in found.proof if p["resource"] == "macs" and not p["met"]]
    differs = found.macs["disagreement"]
    return [*told, *([f"{differs}."] if differs and "no known reason" in differs else [])]


def _int8(found: Findings) -> dict[str, Any] | None:
    """The entry about model.int8.onnx; None if it was not wanted or could not be made."""
    if found.int8 is None or "error" in found.int8:
        return None
    return {**found.int8, "test": found.scores["int8_test"]}


def int8_notes(summary: Mapping[str, Any], failed: str | None) -> list[str]:
    """Notes about the 8-bit model."""
    if failed is not None:
        return [f"There is no model.int8.onnx: {failed}"]
    int8 = summary["int8"]
    if int8 is None:
        return []
    said, ratio = [], int8["ratio_to_final"]
    if ratio["high"] >= 1:
        said.append(f"model.int8.onnx is not faster than model.onnx on this machine ({ratio['value']:.2f} of its time, "
                    f"{ratio['low']:.2f} to {ratio['high']:.2f}): use model.onnx.")  # fmt: skip
    lost = summary["final"]["search"] - int8["search"]
    if lost > TOLERANCE:
        said.append(f"Quantising to 8 bits costs {100 * lost:.1f} points of {summary['metric']} on the search split "
                    "by every setting.")  # fmt: skip
    if int8["in_float"]:
        said.append(f"{len(int8['in_float'])} of {int8['layers']} convolutions and matrix products of model.int8.onnx "
                    "are computed in float by ONNX Runtime.")  # fmt: skip
    return said


def trained_notes(summary: Mapping[str, Any]) -> list[str]:
    """A note that a gain over the original comes from the training, if there is a gain."""
    before, after = summary["original"]["test"], summary["final"]["test"]
    trained = any(stage["name"] == "fine-tune" for stage in summary["stages"])
    if before is None or after is None or not trained or after <= before:
        return []
    return [
        f"The final network has a better {summary['metric']} than the original ({100 * after:.2f} instead of "
        f"{100 * before:.2f} % on the test split). The gain comes from the training after pruning: the original, "
        "trained for as long again, may gain as much."
    ]


def is_missed(proof: Mapping[str, Any]) -> bool:
    """Whether a limit is not met by the delivered network. Only that on latency can be missed."""
    return bool(proof["resource"] == "latency" and not proof["met"])


def _missed(summary: Mapping[str, Any], proof: Mapping[str, Any], obstacle: str | None) -> str:
    """A note about the missed limit: its reason, and what to change."""
    asked, needed = str(summary["budget"]["asked"]["latency"]), 1.01 * proof["exported"] / proof["limit"]
    share = parse_limit("latency", asked, 1.0) * needed
    enough = f"{1.01 * proof['exported']:.3g}ms" if is_absolute(asked) else f"{share:.2g}"
    able = f"Raise --latency to {enough}" if is_absolute(asked) or share <= 1 else "Raise --latency"
    measured, limit = (format_cost("latency", proof[key]) for key in ("exported", "limit"))
    return (
        f"The limit on latency is not met: {measured}, where at most {limit} were asked for"
        f"{f'; {obstacle}' if obstacle else ''}. {able}, allow narrower layers with a lower --min-keep, or measure "
        "while the machine is idle."
    )


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Notes about the result, such as why fewer MACs did not save time."""
    said = []
    macs = summary["final"]["macs"] / summary["original"]["macs"]
    time = summary["latency"]["ratio"]
    if time["low"] > 1.1 * macs:
        reasons = "; ".join(_reasons(summary))
        fell = f"only to {time['value']:.2f}" if time["value"] < 0.995 else "did not fall"
        said.append(f"MACs fell to {macs:.2f} of the original, but the measured time {fell}: {reasons}.")
    elif time["high"] < 0.9 * macs:
        said.append(f"The measured time fell further ({time['value']:.2f}) than the MACs ({macs:.2f}).")
    if time["high"] - time["low"] > 0.2 * time["value"]:
        said.append(
            f"The machine was noisy: the time's ratio lies between {time['low']:.2f} and {time['high']:.2f}. "
            "Measure again when it is quiet."
        )
    return said


def _reasons(summary: Mapping[str, Any]) -> list[str]:
    reasons = []
    groups = [s for s in summary["sites"] if "setting" not in s]
    block = vector_width(cpu_flags())
    off = [s for s in groups if s["width"] % block and s["width"] != s["of"]]
    if off:
        verb = "is not a multiple" if len(off) == 1 else "are not multiples"
        reasons.append(
            f"{len(off)} of {len(groups)} widths {verb} of {block}, the channels that ONNX Runtime computes at once on "
            "this CPU"
        )
    if summary["original"]["latency_ms"] < 0.5:
        reasons.append("in so small a network much of the time is spent starting operators, whatever their width")
    return [*reasons, "layers that move more data than they compute gain less"]
