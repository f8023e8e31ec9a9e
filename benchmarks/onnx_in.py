"""Networks that come through ONNX alone: exported, read back, compared, pruned to half of the MACs, exported again.

    python -m benchmarks.onnx_in                       # resumes; one line per file in benchmarks/results/onnx_in.jsonl
    python -m benchmarks.onnx_in --only 'resnet' --again
    python -m benchmarks.onnx_in --files DIR           # the ONNX files in a folder, such as unpacked wheels
    python -m benchmarks.onnx_in --table               # writes docs/benchmarks/onnx.md

The networks are those of `benchmarks.zoo`, exported by torch's older exporter (``script``: TorchScript, opset 17) and
its newer one (``dynamo``: torch.export). Weights are random and images small. Each file has a process of its own with
limits on time and memory. Nothing but the file is used of a network.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.zoo import attempt
from benchmarks.zoo_networks import build, in_turn

ROOT = Path(__file__).parent
RESULTS, TABLE = ROOT / "results" / "onnx_in.jsonl", ROOT.parent / "docs" / "benchmarks" / "onnx.md"
EXPORTERS = ("script", "dynamo")
SHARE = 0.5


def exported(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Export a network by name and exporter, ``resnet18 script``, and go on with the file."""
    network, exporter = name.rsplit(" ", 1)
    yield {"step": "build"}
    model, example = build(network)
    path = folder / "network.onnx"
    yield {"step": "export by torch"}
    with contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.WARNING)
        names: Any = {"input_names": ["image"], "output_names": ["logits"]}
        if exporter == "script":
            axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(model, (example,), str(path), dynamo=False, opset_version=17, dynamic_axes=axes, **names)
        else:
            twice, shapes = example.repeat(2, 1, 1, 1), ({0: torch.export.Dim("batch")},)
            torch.onnx.export(model, (twice,), str(path), dynamo=True, dynamic_shapes=shapes, external_data=False,
                              verbose=False, **names)  # fmt: skip
        logging.disable(logging.NOTSET)
    del model
    yield from came_back(str(path))


def came_back(name: str) -> Iterator[dict[str, Any]]:
    """Read a file, compare it with ONNX Runtime, prune it to half of its MACs and export it."""
    from amc.config import BudgetConfig, Config, ModelConfig
    from amc.deploy.export import check_parity, export_onnx
    from amc.errors import AmcError
    from amc.graph.build import build_graph
    from amc.graph.surgery import ChannelCutter, shallow_copy
    from amc.graph.trace import trace
    from amc.latency import Runner
    from amc.operators.operator import NetworkFacts
    from amc.pipeline.onnx_files import open_onnx_alone
    from amc.pipeline.spaces import make_space

    found: dict[str, Any] = {"step": "read"}
    yield found
    try:
        model, splits = open_onnx_alone(Config(model=ModelConfig(name=name)))
        found |= {"step": "came back", "opset": model.interface.opset}
        yield found
        inputs = splits.search.fetch(torch.arange(2))[0]
        example = splits.search.fetch(torch.arange(1))[0]
        graph = build_graph(model, example)
        config = Config(budget=BudgetConfig(flops=str(SHARE)))
        space = make_space(config, NetworkFacts(model, graph))
    except AmcError as error:
        yield found | {"reason": str(error).replace(name, "the file")[:300]}
        return
    choice = space.fit(np.ones(len(space.names)))
    kept = [np.arange(width) for width in choice]
    smaller = shallow_copy(model)
    ChannelCutter(smaller, graph.layers).cut(kept)
    found |= {"share": round(trace(smaller, example).macs / graph.trace.macs, 4), "sites": len(graph.sites)}
    yield found | {"step": "pruned"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export_onnx(smaller, example, path)
        found["parity"] = float(f"{check_parity(smaller, inputs, Runner(path)).largest_difference:.1e}")
    yield found | {"step": "done"}


def read() -> dict[str, dict[str, Any]]:
    """The results so far, by name."""
    if not RESULTS.exists():
        return {}
    return {r["name"]: r for r in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}


def write(results: dict[str, dict[str, Any]]) -> None:
    """Replace the file of results."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(f"{json.dumps(results[n])}\n" for n in sorted(results)), encoding="utf-8")


def came(record: dict[str, Any]) -> bool:
    """Whether the outputs were equal."""
    return record["step"] in ("came back", "pruned", "done")


def table(results: dict[str, dict[str, Any]]) -> str:
    """The content of docs/benchmarks/onnx.md."""
    known = [r for r in results.values() if r["step"] not in ("build", "export by torch")]
    unmade = len(results) - len(known)
    back, done = [r for r in known if came(r)], [r for r in known if r["step"] == "done"]
    whole = max(1, len(known))
    head = f"""# Networks through ONNX alone

Written by `python -m benchmarks.onnx_in --table`. amc reads each file without its source, compares it with ONNX Runtime
(largest difference at most 1e-4 of the largest output), prunes it uniformly to half of its MACs, and exports it.

- {len(back)} of {len(known)} files came back with equal outputs ({100 * len(back) / whole:.0f} %).
- {len(done)} of {len(known)} were pruned to half and exported again ({100 * len(done) / whole:.0f} %).
- {unmade} networks were not exported by torch itself, and are not counted.

| file | opset | sites | MACs | seconds (CPU) | result |
|---|---:|---:|---:|---:|---|"""
    lines = [head]
    for r in sorted(known, key=lambda r: r["name"]):
        why = r.get("error") or r.get("reason") or "done"
        share = f"{r['share']:.2f}" if "share" in r else "–"
        lines.append(f"| {r['name']} | {r.get('opset', '–')} | {r.get('sites', '–')} | {share} | {r['seconds']} | "
                     f"{'' if why == 'done' else r['step'] + ': '}{why.replace('|', ' ')} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only files whose name matches this regular expression")
    parser.add_argument("--again", action="store_true", help="repeat files that are done")
    parser.add_argument("--files", type=Path, help="try the ONNX files in this folder instead")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one file, in CPU seconds")
    parser.add_argument("--memory", type=float, default=6, help="limit for one file, in GiB")
    parser.add_argument("--until", type=float, default=float("inf"), help="start no file after this many seconds")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    for name, task in [] if options.table else tasks(options.files):
        if time.perf_counter() - started > options.until:
            break
        if not re.search(options.only, name) or (name in read() and not options.again):
            continue
        with tempfile.TemporaryDirectory() as folder:
            own = functools.partial(task, folder=Path(folder)) if task is exported else task
            record = {"name": name, **attempt(own, name, options.seconds, options.memory)}
        write(read() | {name: record})
        print(name, record["step"], record.get("error") or record.get("reason") or record.get("share"), flush=True)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(read()), encoding="utf-8")


def tasks(files: Path | None) -> Iterator[tuple[str, Any]]:
    """Names and what to do with them."""
    if files is not None:
        for path in sorted(files.rglob("*.onnx")):
            yield "/".join(path.parts[-2:]), lambda name, path=path: came_back(str(path))
        return
    for network in in_turn():
        for exporter in EXPORTERS:
            yield f"{network} {exporter}", exported


if __name__ == "__main__":
    sys.exit(main())
