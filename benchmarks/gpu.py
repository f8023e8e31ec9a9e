"""Long trainings on a GPU: pruned networks, and the originals trained for as long with the same recipe.

    scripts/gpu_bench --data imagefolder:DIR --weights resnet20=A.safetensors resnet56=B.safetensors --epochs 20

Every (network, seed) is two jobs, each in its own process: ``pruned`` is a complete run of `amc search` with
``--device cuda``; ``original`` continues the training of the given weights. The report has both differences: to the
given original, and to the original with further training. A job that is recorded in ``--out`` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.bench import machine

KINDS = ("pruned", "original")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for amc search")
    parser.add_argument("--weights", nargs="+", required=True, metavar="MODEL=FILE")
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads per process")
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit; unfinished jobs are stopped")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--job", nargs=3, metavar=("KIND", "MODEL", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.job:
        kind, model, seed = asked.job
        found = work(asked, kind, model, int(seed))
        record_of(asked.out, kind, model, int(seed)).write_text(json.dumps(found) + "\n")
        return
    run_jobs(asked)
    print(report(asked))


def record_of(out: Path, kind: str, model: str, seed: int) -> Path:
    return out / f"{kind}-{model}-{seed}.json"


def run_jobs(asked: argparse.Namespace) -> None:
    """Start one process per job, at most ``--jobs`` at a time, until all have ended or the time is up."""
    models = [w.partition("=")[0] for w in asked.weights]
    waiting = [job for job in product(asked.kinds, models, asked.seeds) if not record_of(asked.out, *job).exists()]
    running: list[subprocess.Popen[bytes]] = []
    end = time.monotonic() + 60 * asked.minutes
    while (waiting or running) and time.monotonic() < end:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < asked.jobs:
            job = [str(part) for part in waiting.pop(0)]
            with (asked.out / f"{'-'.join(job)}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--job", *job],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        time.sleep(0.5)
    for process in running:
        process.terminate()


def work(asked: argparse.Namespace, kind: str, model: str, seed: int) -> dict[str, Any]:
    """Run one job. Accuracies are in [0, 1]."""
    import amc
    from amc.config import from_dict
    from amc.pipeline.training import train_network

    weights = dict(w.split("=", 1) for w in asked.weights)[model]
    start, folder = time.monotonic(), asked.out / f"{kind}-{model}-{seed}"
    shared = {
        "model": {"name": model, "weights": weights},
        "data": {"name": asked.data},
        "finetune": {"epochs": asked.epochs, "lr": asked.lr},
        "seed": seed,
        "device": asked.device,
        "threads": asked.threads,
    }
    if kind == "original":
        trained = train_network(from_dict({**shared, "out": f"{folder}.safetensors"}))
        return {"test": trained.test, "search": trained.search, "seconds": time.monotonic() - start}
    config = {
        **shared,
        "budget": {"flops": asked.flops},
        "search": {"evaluations": asked.evaluations},
        "out": str(folder),
    }
    resume = folder if (folder / "config.yaml").exists() else None
    result = amc.run(from_dict(config), resume).summary
    return {
        "test": result["final"]["test"],
        "search": result["final"]["search"],
        "pruned_search": result["pruned"]["search"],
        "given_test": result["original"]["test"],
        "macs": result["final"]["macs"] / result["original"]["macs"],
        "stages": result["stages"],
        "seconds": time.monotonic() - start,
    }


def report(asked: argparse.Namespace) -> str:
    """A table of all records, in percent and percentage points. n is the number of seeds."""
    heads = ["network", "n", "given", "trained on", "pruned", "against given", "against trained on", "MACs", "s a run"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for model in (w.partition("=")[0] for w in asked.weights):
        pruned, original = (_recorded(asked, kind, model) for kind in KINDS)
        if pruned:
            rows.append(f"| {' | '.join(_cells(model, pruned, original))} |")
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    recipe = f"{asked.epochs:g} epochs, peak rate {asked.lr:g}, {asked.flops} of the MACs"
    return "\n".join([*rows, "", f"{card}; {machine()}; {recipe}"])


def _recorded(asked: argparse.Namespace, kind: str, model: str) -> list[dict[str, Any]]:
    paths = (record_of(asked.out, kind, model, seed) for seed in asked.seeds)
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def _cells(model: str, pruned: list[dict[str, Any]], original: list[dict[str, Any]]) -> list[str]:
    tests, given = [100 * r["test"] for r in pruned], 100 * pruned[0]["given_test"]
    further = [100 * r["test"] for r in original]
    macs, seconds = (mean(r[key] for r in pruned) for key in ("macs", "seconds"))
    against = f"{mean(tests) - mean(further):+.2f}" if further else ""
    return [model, str(len(pruned)), f"{given:.2f}", _spread(further), _spread(tests), f"{mean(tests) - given:+.2f}",
            against, f"{macs:.3f}", f"{seconds:.0f}"]  # fmt: skip


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


if __name__ == "__main__":
    main()
