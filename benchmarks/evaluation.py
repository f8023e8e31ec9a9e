"""Measure where the time of an evaluation and of a search goes.

    python -m benchmarks.evaluation --model resnet56 --weights W --data imagefolder:PATH --evaluations 30
    python -m benchmarks.evaluation --model resnet20 --weights W --data imagefolder:PATH --ranking 24
    python -m benchmarks.evaluation --model resnet56 --weights W --data imagefolder:PATH --runtimes onnx,compile

The first command measures two parts for both ways of scoring (`--sequential-reconstruction final`: cached solutions;
`search`: every layer is re-solved on its actual inputs). First, one evaluation of the uniform policy at half the MACs,
compared with the bare forward passes of the same pruned network. Second, a search with the default searcher, split into
forward passes for scores, the passes that re-solve, and the rest. Times are CPU seconds of one thread; ratios are of
medians of five interleaved runs.

``--ranking N`` compares how cheaper evaluations rank N policies with the full evaluation that delivered networks get.
``--runtimes`` times the forward passes on other runtimes.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem
from amc.evaluation.reward import loss as loss_reward
from amc.evaluation.score import Score
from amc.evaluation.scorer import BLOCK
from amc.evaluation.settings import Reconstruction
from amc.latency.session import Runner
from amc.pipeline.timing import RunTiming
from amc.reconstruction.sequential import Effort
from amc.search import load_searcher
from amc.search.allocate import error_tables, fast_decoder
from amc.search.spdy import perturbation
from amc.space.sites import Choice
from amc.task import batches, evaluate
from benchmarks.bench import RESULTS, Bench, Records, arguments, machine, open_bench
from benchmarks.proxy import policies

ROUNDS = 5
EFFORTS = [
    Effort(*x) for x in ((512, 6144, 4), (512, 6144, 2), (512, 6144, 0), (384, 6144, 2), (256, 6144, 2), (256, 3072, 2))
]
"""Fast evaluations that ``--ranking`` compares: images, rows, rounds."""


def seconds(works: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median CPU seconds of each work. Runs are interleaved, so that a slow phase of the machine affects all alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            found[name].append(time.process_time() - start)
    return {name: float(np.median(times)) for name, times in found.items()}


def one(bench: Bench) -> dict[str, float]:
    """CPU seconds of the parts of one evaluation."""
    choice = bench.space.fit(np.ones(len(bench.space.names)))
    evaluator = bench.evaluator
    own = evaluator.pruned(choice)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=evaluator.settings.half):
            for images, _ in batches(evaluator.samples.split, BLOCK):
                own(images)

    def folded() -> None:
        with evaluator.samples.folder.folded(own):
            bare()

    def anew(work: Callable[[Choice], Any]) -> None:
        """Evaluate without any solution of earlier policies."""
        evaluator.networks.forget()
        work(choice)

    first = seconds({"assembly the first time": lambda: evaluator.network(choice)}, 1)
    works = {
        "bare forward passes": bare,
        "bare, norms folded": folded,
        "whole evaluation": lambda: anew(evaluator.score),
        "assembly": lambda: anew(evaluator.network),
    }
    return first | seconds(works)


def search(bench: Bench, evaluations: int) -> dict[str, float]:
    """CPU seconds of the parts of a search, the share of images read, and peak memory."""
    spent = {"score": 0.0, "re-solve": 0.0, "evaluating": 0.0}
    began = [0.0]
    evaluator = bench.evaluator
    scratch, effort = evaluator.networks.plain(evaluator.networks.full), evaluator.settings.reconstruction.search
    resolved = 0 if effort is None else min(effort.samples, len(bench.task.splits.calibration))

    def begin(*_: Any) -> None:
        began[0] = time.process_time()

    def end(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        size = len(inputs[0]) if inputs else 0
        kind = "re-solve" if size == resolved and size != BLOCK else "score"
        spent[kind] += time.process_time() - began[0]

    def timed(score: Callable[..., Any]) -> Callable[..., Any]:
        def scored(*choices: Choice) -> Any:
            started = time.process_time()
            found = score(*choices)
            spent["evaluating"] += time.process_time() - started
            return found

        return scored

    handles = [scratch.register_forward_pre_hook(begin), scratch.register_forward_hook(end)]
    problem = Problem(
        bench.space,
        [site.features for site in bench.graph.sites],
        FunctionBackend(timed(evaluator.score), evaluator.site_error, timed(evaluator.race)),
        loss_reward,
    )
    memory = []
    start = time.process_time()
    load_searcher("hybrid")(problem, evaluations // 2, 0)
    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    load_searcher("hybrid")(problem, evaluations, 1)
    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    total = time.process_time() - start
    for handle in handles:
        handle.remove()
    shares = [e.share for e in problem.evaluations]
    return {
        "total": total, **spent, "distinct policies": len(shares),
        "mean share read": float(np.mean(shares)),
        "unchanged": unchanged(bench, [e.choice for e in problem.evaluations]),
        "peak MiB, first third": memory[0] / 1024,
        "peak MiB": memory[1] / 1024,
    }  # fmt: skip


def unchanged(bench: Bench, choices: Sequence[Choice], last: int = 4) -> float:
    """Mean share of the MACs before the first site in which a policy differs from one of the ``last`` few.

    An upper bound of what keeping the activations of these policies could save of a forward pass.
    """
    graph, order = bench.graph, list(bench.graph.trace.layers)
    macs = {layer.name: layer.macs for layer in graph.layers}
    before = dict(zip(order, np.cumsum([0, *(macs.get(name, 0) for name in order)]), strict=False))
    first = np.full(len(graph.sites), graph.trace.macs)
    for layer in graph.layers:  # layers outside of the order count as first
        for axis in (layer.output, layer.input) if layer.has_tensors else ():
            if axis is not None:
                sites = np.unique(axis.site[axis.site >= 0])
                first[sites] = np.minimum(first[sites], before.get(layer.name, 0))
    shares = []
    for number, choice in enumerate(choices[1:], 1):
        differ = [np.array(choice) != np.array(other) for other in choices[max(0, number - last) : number]]
        shares.append(max(first[d].min() if d.any() else graph.trace.macs for d in differ) / graph.trace.macs)
    return float(np.mean(shares))


def runtimes(bench: Bench, ways: Sequence[str]) -> dict[str, float]:
    """CPU seconds of a policy's forward passes over the search split on each runtime, and of its preparation."""
    evaluator, found = bench.evaluator, {}
    choice = bench.space.fit(np.ones(len(bench.space.names)))
    own = evaluator.pruned(choice)

    def passes(network: Callable[[Any], Any], precision: str) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                for images, _ in batches(evaluator.samples.split, BLOCK):
                    network(images)

        return run

    with evaluator.samples.folder.folded(own):
        works = {f"torch {precision}": passes(own, precision) for precision in ("float32", "bfloat16")}
        if "onnx" in ways:
            meter = RunTiming(bench.stages.record, bench.graph).bench()
            started = time.process_time()
            runner = Runner(meter.model(choice))
            found["preparing ONNX Runtime"] = time.process_time() - started
            works["ONNX Runtime float32"] = passes(lambda images: runner(images.contiguous().numpy()), "float32")
        if "compile" in ways:
            compiled = torch.compile(own)
            works["torch.compile bfloat16"] = passes(compiled, "bfloat16")
            found["preparing torch.compile"] = seconds({"": works["torch.compile bfloat16"]}, 1)[""]
        return found | seconds(works, 3)


def met(bench: Bench, count: int, seed: int = 0) -> list[Choice]:
    """Policies as in a search: a third is random near the budget, the others are perturbed allocator policies."""
    rng, space = np.random.default_rng(seed), bench.space
    problem = Problem(space, [site.features for site in bench.graph.sites], bench.evaluator, loss_reward)
    decode, found = fast_decoder(space, error_tables(problem)), policies(bench, -(-count // 3), seed)
    while len(found) < count:
        choice = decode(np.exp(perturbation(rng, len(space.names), 0.3)))
        if choice not in found:
            found.append(choice)
    return found


def ranking(bench: Bench, count: int) -> dict[str, Any]:
    """Spearman's correlation of fast with full evaluations, over all and in the better half, and CPU seconds."""
    evaluator, choices = bench.evaluator, met(bench, count)

    def losses(score: Callable[[Choice], Score]) -> tuple[np.ndarray[Any, Any], float]:
        start = time.process_time()
        return np.array([score(choice).loss for choice in choices]), (time.process_time() - start) / count

    full, dear = losses(evaluator.refined_score)
    better = full.argsort()[: count // 2]
    ways: dict[str, Effort | None] = {
        f"re-solved on {x.samples} images, {x.rows:,} rows, {x.rounds} rounds": x for x in EFFORTS
    }
    found, dtype = {}, evaluator.faster_dtype()
    for name, effort in {**ways, "cached solutions": None}.items():
        settings = replace(evaluator.settings, dtype=dtype, reconstruction=Reconstruction(search=effort))
        fast = evaluator.with_settings(settings)
        fast.network(choices[0])  # runs the original once, before timing
        fast.networks.forget()
        scores, cost = losses(fast.score)
        found[name] = [float(spearmanr(scores[x], full[x])[0]) for x in (slice(None), better)] + [cost]
    original = evaluate(bench.task.model, bench.task, bench.task.splits.search)[1]
    about = {"policies": count, "original": original, "judge": evaluator.settings.objective, "precision": dtype}
    return {**about, "careful seconds": dear, "ways": found}


def _told_ranking(row: dict[str, Any]) -> list[str]:
    found = row["ranking"]
    return [
        f"**{row['piece']}**: {found['policies']} policies at half the MACs, {row['images']} images (accuracy of the "
        f"original: {100 * found['original']:.2f} %), scored by {found['judge']} in {found['precision']}. A full "
        f"evaluation takes {found['careful seconds']:.2f} s.",
        "",
        "| fast evaluation | Spearman with the full evaluation | in the better half | CPU seconds per policy |",
        "|---|---|---|---|",
        *(f"| {name} | {rank:.3f} | {half:.3f} | {cost:.2f} |" for name, (rank, half, cost) in found["ways"].items()),
        "",
    ]


def _told_runtimes(row: dict[str, Any]) -> list[str]:
    told = (f"{name} {cost:.2f} s" for name, cost in sorted(row["runtimes"].items()))
    return [f"**{row['piece']}**, {row['images']} images at half the MACs, BatchNorms folded: {', '.join(told)}", ""]


def report(records: Records) -> str:
    """All records as Markdown."""
    rows = [r for r in records.all() if r["piece"] != "about"]
    lines = [f"{(records('about') or {}).get('machine')}, one thread", ""]
    for row in rows:
        told = next((tell for key, tell in _TELL.items() if key in row), _told_parts)
        lines += told(row)
    return "\n".join(lines)


def _told_parts(row: dict[str, Any]) -> list[str]:
    once, whole = row["one"], row["search"]
    bare = once["bare forward passes"]
    passes = whole["score"] + whole["re-solve"]
    return [
        f"**{row['piece']}** ({row['precision']})",
        "",
        f"- one evaluation: {once['whole evaluation']:.2f} s, {once['whole evaluation'] / bare:.2f} × the bare "
        f"forward passes ({bare:.2f} s; {once['bare, norms folded']:.2f} s with BatchNorms folded); assembling the "
        f"network {once['assembly']:.3f} s, the first time {once['assembly the first time']:.3f} s",
        f"- a search of {whole['distinct policies']:.0f} policies: {whole['total']:.1f} s; "
        f"{100 * whole['score'] / whole['total']:.0f} % in forward passes for scores, "
        f"{100 * whole['re-solve'] / whole['total']:.0f} % in the passes that re-solve, "
        f"{100 - 100 * passes / whole['total']:.0f} % in the rest",
        f"- {100 * whole['unchanged']:.0f} % of the MACs come before the first site that differs from one of the last "
        "four policies",
        f"- racing: {100 * whole['mean share read']:.0f} % of the images were read on average; an evaluation of this "
        f"search took {whole['evaluating'] / whole['distinct policies']:.2f} s",
        f"- peak memory {whole['peak MiB']:.0f} MiB, after a third {whole['peak MiB, first third']:.0f} MiB",
        "",
    ]


_TELL = {"ranking": _told_ranking, "runtimes": _told_runtimes}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--sequential-reconstruction", default="final,search", help="ways of scoring to measure")
    parser.add_argument(
        "--search-objective", choices=["loss", "logit_mse"], default="logit_mse", help="as for amc search"
    )
    parser.add_argument("--ranking", type=int, default=0, metavar="N", help="rank N policies instead")
    parser.add_argument("--runtimes", default="", help="other runtimes for the forward passes: onnx,compile")
    parser.add_argument("--report", action="store_true", help="print all records")
    asked = parser.parse_args()
    with Records(RESULTS / "evaluation.jsonl") as records:
        if not records("about"):
            records.add("about", machine=machine())
        if asked.ranking and not records(f"{asked.model}, ranking"):
            bench = open_bench(asked, 0.5, objective=asked.search_objective)
            records.add(f"{asked.model}, ranking", ranking=ranking(bench, asked.ranking), images=asked.search_images)
        if asked.runtimes and not records(f"{asked.model}, runtimes"):
            bench = open_bench(asked, 0.5)
            found = runtimes(bench, asked.runtimes.split(","))
            records.add(f"{asked.model}, runtimes", runtimes=found, images=asked.search_images)
        for sequential in (
            () if asked.report or asked.ranking or asked.runtimes else asked.sequential_reconstruction.split(",")
        ):
            piece = ", ".join([
                asked.model, f"--sequential-reconstruction {sequential}",
                f"{asked.search_images} images by {asked.search_objective}",
            ])  # fmt: skip
            if not records(piece):
                bench = open_bench(asked, 0.5, sequential_reconstruction=sequential, objective=asked.search_objective)
                records.add(
                    piece, one=one(bench), search=search(bench, asked.evaluations), images=asked.search_images,
                    precision=bench.evaluator.settings.dtype,
                )  # fmt: skip
        print(report(records))


if __name__ == "__main__":
    main()
