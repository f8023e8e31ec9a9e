"""`amc measure`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc.commands.command import STDOUT, Answer, Command
from amc.commands.options import positive, whole
from amc.commands.progress import progress
from amc.commands.show import table, terminal
from amc.config import convert
from amc.errors import ConfigError


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL.onnx", nargs="+", help="ONNX models; the first one is the baseline")
    parser.add_argument("--threads", default="1", metavar="N", help="threads of ONNX Runtime [1]")
    parser.add_argument("--seconds", default="20", metavar="X", help="longest time to measure for [20]")
    parser.add_argument("--precision", default="0.005", metavar="X",
                        help="stop when every ratio's 95%% interval is within this share of it [0.005]")  # fmt: skip
    parser.add_argument("--input-size", metavar="C,H,W", help="the input's shape after the batch, where a model "
                        "leaves it open")  # fmt: skip
    parser.add_argument("--json", metavar="FILE.json", nargs="?", const=STDOUT,
                        help="print the result as one JSON document on stdout, everything else on stderr; with a file: "
                        "print the table, and write the document there")  # fmt: skip


@dataclass(frozen=True)
class MeasureAnswer(Answer):
    """Times and peak memory of models, side by side."""

    found: Any
    memory: Mapping[str, int | None]
    where: Mapping[str, Any]
    precision: float
    file: str | None = None
    """Where the document is written too."""

    @property
    def too_noisy(self) -> bool:
        """Whether the ratios are known less well than they should be."""
        return bool(self.found.spread > 4 * self.precision)

    def show(self) -> None:
        _print_measured(self.found, self.memory, self.where)
        if self.too_noisy:
            terminal().print(
                f"note: the machine is too noisy to tell: a ratio is known to ±{100 * self.found.spread:.1f} % only. "
                "Measure for longer (--seconds), or when less else is running.",
                soft_wrap=True,
            )
        if self.file is not None:
            from amc.runtime.files import write_json

            write_json(Path(self.file), self.document())

    def document(self) -> dict[str, Any]:
        models = {name: {**asdict(x), "peak_memory": self.memory[name]} for name, x in self.found.latencies.items()}
        return {"format": "amc-measure", "version": 1, "models": models, "rounds": self.found.rounds,
                "too_noisy": self.too_noisy, **self.where}  # fmt: skip


def _measure(parsed: argparse.Namespace) -> MeasureAnswer:
    from amc.latency import ConfinedRunner, measure, peak_memory

    threads = whole(parsed.threads, "--threads", 1)
    seconds, precision = positive(parsed.seconds, "--seconds", 86400), positive(parsed.precision, "--precision", 1)
    shape = convert(parsed.input_size, tuple[int, ...] | None, "--input-size")
    file = None if parsed.json in (None, STDOUT) else parsed.json
    if file is not None and file.endswith(".onnx"):
        raise ConfigError(f"--json would write over {file}: put --json at the end, or name a .json file after it.")
    paths = [Path(model) for model in parsed.models]
    inputs = None
    for path in paths:  # anybody's: first where it does no harm
        with ConfinedRunner(path, threads) as runner:
            own = runner.signature.random_inputs(shape if inputs is None else inputs.shape[1:])
            inputs = own if inputs is None else inputs
            runner.outputs(inputs)
    assert inputs is not None
    names = [f"{i}. {path.name}" if len(paths) > 1 else str(path) for i, path in enumerate(paths, 1)]
    where = _where(threads, inputs.shape)
    with progress(parsed) as monitor:
        monitor.begin("measure")
        found = measure(dict(zip(names, paths, strict=True)), inputs, threads, seconds, precision,
                        progress=monitor.progress)  # fmt: skip
        memory = {name: peak_memory(path, inputs.shape, threads)
                  for name, path in zip(names, paths, strict=True)}  # fmt: skip
    where["load_after"] = os.getloadavg()[0]
    return MeasureAnswer(found, memory, where, precision, file)


def _where(threads: int, shape: Sequence[int]) -> dict[str, Any]:
    """Where and with what latency is measured."""
    from amc.runtime.provenance import cpu_name, load, runtime_version

    return {"threads": threads, "inputs": list(shape), "runtime": runtime_version(), "cpu": cpu_name(),
            "load_before": load()}  # fmt: skip


def _print_measured(found: Any, memory: Mapping[str, int | None], where: Mapping[str, Any]) -> None:
    from amc.reports.human import size

    rows = [
        [
            name,
            *(f"{v:.4f}" for v in (x.min_ms, x.p10_ms, x.median_ms)),
            f"{x.ratio:.3f}",
            f"{x.ratio_low:.3f} to {x.ratio_high:.3f}",
            size(memory[name]),
        ]
        for name, x in found.latencies.items()
    ]
    console = terminal()
    console.print(table(["ms", "min", "10 %", "median", "ratio", "95 % interval", "peak memory"], rows))
    console.print(f"{found.rounds} rounds in random order, {found.threads} thread(s), inputs {where['inputs']}; "
                  f"{where['runtime']}, {where['cpu']}, load {where['load_before']:.1f} before and "
                  f"{where['load_after']:.1f} after. Peak memory is what loading and running the model adds to a "
                  "process of its own.", soft_wrap=True)  # fmt: skip


MEASURE = Command(
    "measure",
    "time ONNX models side by side on ONNX Runtime",
    _add_measure,
    _measure,
    """examples:
  amc measure original.onnx model.onnx     how much faster, and how sure that is
  amc measure a.onnx b.onnx c.onnx --threads 2 --seconds 60 --json found.json
  amc measure a.onnx --input-size 3,224,224     for a model that takes any size""",
)
