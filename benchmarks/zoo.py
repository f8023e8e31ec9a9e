"""Try every torchvision classifier and eighty timm networks with all steps of a run except the search.

    python -m benchmarks.zoo                      # resumes; one line per network in benchmarks/results/zoo.jsonl
    python -m benchmarks.zoo --quick              # first without ONNX and the bundle, which take two thirds of the time
    python -m benchmarks.zoo --only 'regnet' --again
    python -m benchmarks.zoo --table              # writes docs/benchmarks/zoo.md

Weights are random and images small. Each network runs in its own process with limits on time and memory. The pruner of
Torch-Pruning is tried with the same network.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.zoo_networks import CLASSES, build, in_turn, names
from benchmarks.zoo_table import SHARE, table

ROOT = Path(__file__).parent
RESULTS, TABLE = ROOT / "results" / "zoo.jsonl", ROOT.parent / "docs" / "benchmarks" / "zoo.md"
Task = Callable[[str], Iterator[dict[str, Any]]]


def ours(name: str, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Run amc step by step (``quick``: without ONNX and bundle). Yields the results so far after each step."""
    from amc.errors import BudgetError, ModelError
    from amc.graph.build import build_graph
    from amc.operators.channels import legal_widths
    from amc.space.budget import Space
    from amc.space.resources import ResourceModel
    from amc.space.sites import numeric_sites

    model, example = build(name)
    found: dict[str, Any] = {"size": example.shape[-1], "step": "inspect"}
    yield found
    start = time.process_time()
    try:
        graph = build_graph(model, example)
    except ModelError as error:
        yield found | {"step": "refused", "reason": str(error)}
        return
    found |= {
        "inspect": round(time.process_time() - start, 2),
        "macs": graph.trace.macs,
        "sites": len(graph.sites),
        "refused": [[r.name, r.reason] for r in graph.refusals],
    }
    yield found
    resources = ResourceModel(graph, model)
    settings = tuple(legal_widths(s.channels, 0.2, 0) for s in graph.sites)
    least = resources.cost([s[0] for s in settings])["macs"] / graph.trace.macs
    found |= {"least": round(least, 4)}
    try:
        limits = {"macs": SHARE * graph.trace.macs}
        space = Space(numeric_sites([s.name for s in graph.sites], settings), resources, limits)
    except BudgetError:
        yield found | {"step": "refused", "reason": f"at least {100 * least:.0f} % of the MACs remain"}
        return
    if not quick:
        yield found | {"step": "the original on ONNX Runtime"}
        if reason := _runs_differently(model, example):
            yield found | {"step": "refused", "reason": reason}
            return
    rng = np.random.default_rng(0)
    for policy, shares in (("random", rng.uniform(0.3, 1, len(settings))), ("uniform", np.ones(len(settings)))):
        choice, last = space.fit(shares), policy == "uniform" and not quick
        kept = [np.sort(rng.choice(s.channels, w, replace=False)) for s, w in zip(graph.sites, choice, strict=True)]
        for step in _tried(model, example, graph, kept, resources.cost(choice)["macs"], found, last):
            yield found | {"step": f"{policy} policy: {step}"}
    yield found | {"step": "quick" if quick else "done"}


def _runs_differently(model: nn.Module, example: Tensor) -> str | None:
    """The error message of a run if ONNX Runtime and torch disagree about the network, else None."""
    from amc.deploy.export import check_parity, export_onnx
    from amc.errors import ExportError
    from amc.latency import Runner

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "original.onnx")
        try:
            export_onnx(model, example, path)
            check_parity(model, torch.randn(2, *example.shape[1:]), Runner(path))
        except ExportError as error:
            return str(error)
    return None


def _tried(
    model: nn.Module, example: Tensor, graph: Any, kept: Any, macs: float, found: dict[str, Any], last: bool
) -> Iterator[str]:
    from amc.deploy.bundle import load, save_weights, seal
    from amc.deploy.export import check_parity, export_onnx
    from amc.graph.surgery import ChannelCutter, shallow_copy
    from amc.graph.trace import trace
    from amc.graph.verify import masked_outputs
    from amc.latency import Runner
    from amc.operators.policy import fingerprint, make_policy

    yield "prune"
    smaller = shallow_copy(model)
    ChannelCutter(smaller, graph.layers).cut(kept)
    smaller = copy.deepcopy(smaller)
    yield "forward"
    images = torch.randn(2, *example.shape[1:])
    with torch.no_grad():
        one, two = smaller(images[:1]), smaller(images)
    assert [tuple(one.shape), tuple(two.shape)] == [(1, CLASSES), (2, CLASSES)], f"{one.shape}, {two.shape}"
    yield "MACs as predicted"
    counted = trace(smaller, example).macs
    assert counted == macs, f"{counted} MACs, not {macs:.0f}"
    found["share"] = round(counted / graph.trace.macs, 4)
    yield "masked equals pruned"
    expected = masked_outputs(model, graph, kept, images)[0]
    far = float((two - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
    found["masked"] = float(f"{far:.1e}")
    assert far < 1e-2, f"{far:.2g} of the largest output"
    yield "training step"
    _train(copy.deepcopy(smaller), images)
    if not last:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        yield "ONNX export"
        export_onnx(smaller, example, path)
        yield "parity on ONNX Runtime"
        found["parity"] = float(f"{check_parity(smaller, images, Runner(path)).largest_difference:.1e}")
        yield "bundle"
        save_weights(smaller, Path(folder, "model.safetensors"))
        make_policy(graph, fingerprint(model), kept).save(Path(folder, "policy.json"))
        seal(Path(folder))
        with torch.no_grad():
            again = load(folder, model, example)(images)
        assert torch.equal(again, two), "the loaded network computes something else"


def _train(model: nn.Module, images: Tensor) -> None:
    model.train()
    outputs = model(torch.cat([images, images.flip(3)]))
    outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
    loss = nn.functional.cross_entropy(outputs, torch.tensor([1, 2, 3, 4]))
    loss.backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    assert torch.isfinite(loss), f"the loss is {loss.item()}"


def theirs(name: str) -> Iterator[dict[str, Any]]:
    """Run Torch-Pruning's pruner with half of the channels, used as in its examples."""
    import torch_pruning as tp

    model, example = build(name)
    yield {"step": "prune"}
    before = tp.utils.count_ops_and_params(model, example)[0]
    heads = {m.qkv: m.num_heads for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)}
    ends = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    ends += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == CLASSES]
    pruner = tp.pruner.MagnitudePruner(
        model, example, tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=ends,
        num_heads=heads, prune_head_dims=True, root_module_types=[nn.Conv2d, nn.Linear],
    )  # fmt: skip
    pruner.step()
    yield {"step": "forward"}
    with torch.no_grad():
        out = model(torch.randn(2, *example.shape[1:]))
    assert tuple(out.shape) == (2, CLASSES), f"the outputs are {tuple(out.shape)}"
    share = tp.utils.count_ops_and_params(model, example)[0] / before
    yield {"step": "training step"}
    _train(model, torch.randn(2, *example.shape[1:]))
    if share > SHARE:
        raise AssertionError(f"{100 * share:.0f} % of the MACs remain")
    yield {"step": "done", "share": round(share, 4)}


def _work(task: Task, name: str, pipe: Any, seconds: int, gigabytes: float) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    here = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(gigabytes * 2**30) + here.ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    known: dict[str, Any] = {"step": "build"}
    try:
        for known in task(name):
            pipe.send(known)
    except BaseException as error:  # noqa: BLE001  (every error is a result)
        at = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        where = f"{Path(at.filename).name}:{at.lineno}"
        pipe.send(known | {"error": f"{type(error).__name__}: {reason}", "place": where})
    pipe.close()


def attempt(task: Task, name: str, seconds: int, gigabytes: float) -> dict[str, Any]:
    """Run the task in its own process and return the result. Times are CPU seconds."""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe(False)
    process = context.Process(target=_work, args=(task, name, other, seconds, gigabytes))
    before = _spent()
    process.start()
    other.close()
    known: dict[str, Any] = {"step": "build"}
    try:
        while True:
            known = mine.recv()
    except EOFError:
        process.join()
    if known["step"] not in ("done", "quick", "refused") and "error" not in known:
        spent = _spent() - before
        too_long = spent > 0.95 * seconds
        known = known | {"error": f"took more than {seconds} s" if too_long else f"needed more than {gigabytes:g} GiB"}
    return known | {"seconds": round(_spent() - before, 1)}


def _spent() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read() -> dict[str, dict[str, Any]]:
    if not RESULTS.exists():
        return {}
    return {r["name"]: r for r in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}


def write(results: dict[str, dict[str, Any]]) -> None:
    order = {name: i for i, name in enumerate(names())}
    lines = [json.dumps(results[n]) for n in sorted(results, key=lambda n: order.get(n, len(order)))]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only networks whose name matches this regular expression")
    parser.add_argument("--again", action="store_true", help="repeat networks that are done")
    parser.add_argument("--failed", action="store_true", help="repeat networks that failed")
    parser.add_argument("--quick", action="store_true", help="skip ONNX and the bundle")
    parser.add_argument("--no-ours", action="store_true", help="run only Torch-Pruning, on networks that have a result")
    parser.add_argument("--no-theirs", action="store_true", help="do not run Torch-Pruning")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one network, in CPU seconds")
    parser.add_argument("--memory", type=float, default=6, help="limit for one network, in GiB")
    parser.add_argument("--until", type=float, default=float("inf"), help="start no network after this many seconds")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    started = time.perf_counter()
    if not options.table:
        _warm_up()
        for name in in_turn():
            if time.perf_counter() - started > options.until:
                break
            if re.search(options.only, name) and (record := _tried_anew(name, read().get(name, {}), options)):
                write(read() | {name: record})
                a = record["amc"]
                outcome = a.get("error") or a.get("reason") or a.get("share")
                print(name, a["step"], outcome, f"{a['seconds']} s", flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(read()), encoding="utf-8")


def _warm_up() -> None:
    """Import once what every network needs. The forked processes inherit it."""
    import onnxruntime  # noqa: F401
    import timm  # noqa: F401
    import torch_pruning  # noqa: F401

    import amc.deploy.bundle
    import amc.latency  # noqa: F401
    from amc.deploy.export import export_onnx

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # the exporter imports most modules on its first export
        export_onnx(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8), Path(folder, "model.onnx"))


def _tried_anew(name: str, known: dict[str, Any], options: argparse.Namespace) -> dict[str, Any] | None:
    """The record of a network after running what is missing. None if nothing is missing."""
    record = {"name": name, **known}
    step = known["amc"]["step"] if known else ""
    failed = step not in ("done", "quick", "")
    if options.no_ours:
        if not known:
            return None
    elif options.again or not step or (step == "quick" and not options.quick) or (failed and options.failed):
        task = functools.partial(ours, quick=options.quick)
        record |= {"code": code(), "amc": attempt(task, name, options.seconds, options.memory)}
    if not options.no_theirs and "torch-pruning" not in known:
        record["torch-pruning"] = attempt(theirs, name, 60, options.memory)
    return record if record != known else None


def code() -> str:
    """A fingerprint of the code that inspects and prunes. Every row records it."""
    amc = ROOT.parent / "amc"
    files = [*sorted(amc.glob("graph/**/*.py")), amc / "task" / "nested.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main())
