"""Measure how well latency is predicted.

::

    python -m benchmarks.latency --part predict --network resnet56 --seconds 240
    python -m benchmarks.latency --part table

``benchmarks/latency_or_macs.py`` compares searches for latency with searches for MACs.

A command that is run again continues. Measurements are kept in ``--work``, results in
``benchmarks/results/latency.json``; the tables in ``docs/benchmarks/latency.md`` are written from them. Measure on an
undisturbed machine.

**predict**: profiles a network as `amc profile` does, then measures policies that the profile does not contain. Their
proportions are drawn uniformly from [0.1, 1] and scaled to a share of the MACs drawn uniformly from [0.3, 1). Each
policy is measured in ``--sessions`` pairs of new sessions. Profiling and measuring alternate, and a session counts only
if the original takes its usual time. Small networks need more sessions, because sessions differ.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from amc.deploy.export import export_onnx, file_layout
from amc.errors import BudgetError
from amc.graph.build import build_graph
from amc.latency.learned import errors, undisturbed
from amc.latency.measurement import is_usual
from amc.latency.profile import LearnedModel, Profile
from amc.latency.profiling import Bench, learn_latency, profile_key
from amc.latency.reference import UNDISTURBED
from amc.operators.channels import legal_widths
from amc.runtime.files import write_json, write_text
from amc.runtime.journal import Journal
from amc.runtime.provenance import cpu_name, runtime_version
from amc.space.budget import Space
from amc.space.resources import ResourceModel
from amc.space.sites import numeric_sites
from amc.task.models import load_model
from benchmarks import latency_or_macs

RESULTS, TABLE = Path("benchmarks/results/latency.json"), Path("docs/benchmarks/latency.md")
NETWORKS = {
    "resnet20": ("resnet20", 32, 60.0),
    "resnet56": ("resnet56", 32, 60.0),
    "vgg16bn": ("vgg16bn", 32, 60.0),
    "mobilenetv2": ("mobilenetv2", 32, 60.0),
    "resnet18 at 224": ("torchvision:resnet18", 224, 240.0),
    "mobilenet_v2 at 224": ("torchvision:mobilenet_v2", 224, 360.0),
}
"""Model name, side of the image, maximum seconds of profiling."""
TURN = 15.0
"""Seconds per turn: first for the profile, then for policies that it does not contain."""


def setting(name: str, work: Path) -> SimpleNamespace:
    """A network with random weights, and a bench that measures it."""
    torch.manual_seed(0)
    model_name, size, seconds = NETWORKS[name]
    task = SimpleNamespace(
        model=load_model(model_name, "random", 3, 10, "cifar10"), example=torch.randn(1, 3, size, size)
    )
    graph = build_graph(task.model, task.example)
    stem = "".join(c if c.isalnum() else "-" for c in name)
    original = work / f"{stem}.onnx"
    if not original.exists():
        export_onnx(task.model, task.example, original)
    bench = Bench(task, graph, original, 1)
    costs = ResourceModel(graph, task.model, file_layout(original, graph, task.model))
    return SimpleNamespace(task=task, graph=graph, bench=bench, costs=costs, seconds=seconds, stem=stem)


def test_policies(at: SimpleNamespace, count: int) -> list[tuple[int, ...]]:
    """Random policies at random budgets."""
    rng, found = np.random.default_rng(2024), []
    legal = tuple(legal_widths(site.channels, 0.2) for site in at.graph.sites)
    names = tuple(site.name for site in at.graph.sites)
    full = at.costs.cost([s[-1] for s in legal])["macs"]
    while len(found) < count:
        share = rng.uniform(0.3, 1.0)
        try:
            space = Space(numeric_sites(names, legal), at.costs, {"macs": share * full})
        except BudgetError:
            continue
        found.append(space.fit(rng.uniform(0.1, 1.0, len(legal))))
    return found


def predict(name: str, work: Path, seconds: float, count: int, sessions: int) -> None:
    """Continue with one network for ``seconds``, alternating between its profile and policies outside of it.

    Alternating exposes both to the same states of the machine. It may be slower by a third for minutes, and ratios
    differ then.
    """
    end, at = time.monotonic() + seconds, setting(name, work)
    path, policies = work / f"{at.stem}.profile.json", test_policies(at, count)
    with Journal(work / f"{at.stem}.jsonl") as journal:
        while True:
            spent = Profile.load(path).seconds if path.exists() else 0.0
            most = min(at.seconds, spent + TURN)
            model = learn_latency(at.bench, at.graph, profile_key(at.bench, 1, at.task), path, most, lambda *_: None)
            grown = model.profile.seconds > spent
            turn = min(end, time.monotonic() + (TURN if grown else np.inf))
            for policy in policies:
                while len(ratios(journal, policy, model)) < sessions and time.monotonic() < turn:
                    timing = at.bench.timing(policy)
                    journal.append("session", choice=list(policy), **asdict(timing))
            whole = all(len(ratios(journal, policy, model)) >= sessions for policy in policies)
            if time.monotonic() >= end or (whole and not grown):
                break
        record(name, Profile.load(path), policies, [ratios(journal, policy, model) for policy in policies], sessions)


def ratios(journal: Journal, policy: tuple[int, ...], model: LearnedModel) -> list[float]:
    """A policy's ratios from sessions that were undisturbed and as fast as the profile's."""
    known = [r for r in journal.records("session") if tuple(r["choice"]) == policy and r["quiet"] >= UNDISTURBED]
    return [r["ratio"] for r in known if is_usual(r["original_ms"], model.profile.original_ms)]


def record(
    name: str, profile: Profile, policies: list[tuple[int, ...]], done: list[list[float]], sessions: int
) -> None:
    """Write the errors so far to the results file."""
    whole = [(p, r) for p, r in zip(policies, done, strict=True) if len(r) >= sessions]
    measured = [(p, float(np.median(r))) for p, r in whole]
    if len(measured) < 10:
        print(f"{name}: {sum(map(len, done))} sessions measured, {len(measured)} policies done")
        return
    model = LearnedModel(profile)
    rows = np.array([p for p, _ in measured])
    found = errors(model.predict_all(rows) / profile.original_ms, [r for _, r in measured])
    before = time.process_time()  # CPU time: the machine may be busy
    for _ in range(200):
        model.predict_all(rows[:1])
    cost = (time.process_time() - before) / 200
    noise = [np.std(np.log(r), ddof=1) for _, r in whole]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault("predict", {})[name] = {
        "policies": found.count, "sessions": sessions, "mean": found.mean, "worst": found.worst,
        "spearman": found.spearman,
        "cross_validated": model.errors.mean, "networks_profiled": len(profile.samples),
        "undisturbed": len(undisturbed(profile.samples)),
        "profile_seconds": profile.seconds, "block": model.block, "original_ms": profile.original_ms,
        "prediction_us": 1e6 * cost,
        "session_noise": float(np.mean(noise)), "cpu": cpu_name(), "runtime": runtime_version(),
    }  # fmt: skip
    write_json(RESULTS, results)
    table()
    print(f"{name}: {found}, cross-validated {model.errors}, {1e6 * cost:.0f} µs")


def table() -> None:
    """Write the results as Markdown."""
    results = json.loads(RESULTS.read_text())
    lines = [
        "# Latency: measured results", "",
        "Written by `python -m benchmarks.latency --part table`; `benchmarks/latency.py` and "
        "`benchmarks/latency_or_macs.py` describe the measurements.", "",
    ]  # fmt: skip
    if results.get("predict"):
        lines += [
            "## How well latency is predicted", "",
            "The model predicts policies that it was not fitted on. An error is relative to the median over the given "
            "number of pairs of sessions, or more. The noise is that of a single pair. *Profiled* counts the networks "
            "in the profile and, in brackets, the undisturbed ones; the model is fitted on those only.", "",
            "| network | ms | policies | sessions | mean error | worst error | Spearman | cross-validated error "
            "| noise | profiled | profiling | one prediction |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, r in results["predict"].items():
            own = [100 * r[key] for key in ("mean", "worst", "cross_validated", "session_noise")]
            lines.append(
                f"| {name} | {r['original_ms']:.2f} | {r['policies']} | {r['sessions']} | {own[0]:.2f} % | "
                f"{own[1]:.1f} % | {r['spearman']:.3f} | {own[2]:.2f} % | {own[3]:.1f} % | {r['networks_profiled']} "
                f"({r['undisturbed']}) | {r['profile_seconds']:.0f} s | {r['prediction_us']:.0f} µs |"
            )
        some = next(iter(results["predict"].values()))
        lines += ["", f"{some['cpu']}, {some['runtime']}, one thread.", ""]
    lines += ["## Searching for latency or for MACs", "", latency_or_macs.ABOUT, ""]
    for path in sorted(RESULTS.parent.glob("latency-or-macs-*.jsonl")):
        lines += [f"### {path.stem.removeprefix('latency-or-macs-')}", "", *latency_or_macs.report(path), ""]
    write_text(TABLE, "\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["predict", "table"], required=True)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet56")
    parser.add_argument("--policies", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--work", type=Path, default=Path("amc-runs/benchmarks/latency"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.part == "predict":
        predict(given.network, given.work, given.seconds, given.policies, given.sessions)
    else:
        table()


if __name__ == "__main__":
    main()
