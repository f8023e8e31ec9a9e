"""`amc search`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.commands.command import NOT_MET, Answer, Command
from amc.commands.options import add_options, configuration, given_values, whole
from amc.commands.progress import progress
from amc.commands.show import table, terminal
from amc.config import Config
from amc.errors import ConfigError, Interrupted


def _add_search(parser: argparse.ArgumentParser) -> None:
    run = add_options(parser, ("train",))
    run.add_argument("--no-finetune", dest="finetune.epochs", action="store_const", const=0,
                     help="no training at all: the best network before it (--finetune-epochs 0)")  # fmt: skip
    run.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, as it was configured")
    run.add_argument("--ray", metavar="ADDRESS", help="evaluate on a Ray cluster: auto (the one here) or HOST:PORT")
    run.add_argument("--workers", metavar="N", default="2", help="with --ray: policies evaluated at a time [2]")


def _search(parsed: argparse.Namespace) -> SearchAnswer:
    from amc.pipeline.pipeline import run

    given = given_values(parsed)
    if parsed.resume and (given or parsed.config):
        raise ConfigError("--resume goes on with a run as it was configured: give no other options with it.")
    config = Config() if parsed.resume else configuration(parsed)
    with progress(parsed) as monitor, _remote(parsed) as remote:
        try:
            result = run(config, parsed.resume, monitor, parsed.trust, remote)
        except Interrupted as stop:
            cluster = f" --ray {shlex.quote(parsed.ray)} --workers {parsed.workers}" if parsed.ray else ""
            raise Interrupted(f"{stop}{cluster}") from None
    return SearchAnswer(result.summary, result.folder)


@contextlib.contextmanager
def _remote(parsed: argparse.Namespace) -> Iterator[Any]:
    """Makes the backend of a Ray cluster; None: policies are scored here."""
    if parsed.ray is None:
        yield None
        return
    from amc.batch.cluster import RayBackend, connected

    count = whole(parsed.workers, "--workers", 1)
    with connected(parsed.ray):
        yield functools.partial(RayBackend, count=count)


@dataclass(frozen=True)
class SearchAnswer(Answer):
    """The result of a run."""

    summary: Mapping[str, Any]
    folder: Path

    @property
    def code(self) -> int:
        from amc.pipeline.summary import is_missed

        return NOT_MET if any(is_missed(proof) for proof in self.summary["proof"]) else 0

    def show(self) -> None:
        from amc.pipeline.summary import is_missed
        from amc.reports import bits_line, columns, final_table, was_trained
        from amc.space.budget import format_cost

        console, summary = terminal(), self.summary
        console.print()
        rows = [[row.label, *row.cells(was_trained(summary))] for row in final_table(summary)]
        console.print(table(["", *columns(summary)], rows))
        for proof in summary["proof"]:
            value, limit = (format_cost(proof["resource"], proof[key]) for key in ("exported", "limit"))
            word = "met" if proof["met"] else "NOT met" if is_missed(proof) else "not proved"
            console.print(f"{word}: {value} of at most {limit} ({proof['how']})", soft_wrap=True)
        if line := bits_line(summary):
            console.print(line, soft_wrap=True)
        if summary.get("int8"):
            console.print(_int8_line(summary), soft_wrap=True)
        for note in summary["notes"]:
            console.print(f"note: {note}", soft_wrap=True)
        console.print(f"Results in {self.folder}: model.onnx, report.html, policy.json, weights", soft_wrap=True)

    def document(self) -> dict[str, Any]:
        return {**self.summary, "folder": str(self.folder)}


def _int8_line(summary: Mapping[str, Any]) -> str:
    from amc.reports.human import size

    int8 = summary["int8"]
    others = (("original", "original_ms"), ("model.onnx", "final_ms"))
    beside = [f"{word} {int8[key]:.3g} ms" for word, key in others if int8.get(key) is not None]
    return (
        f"model.int8.onnx ({int8['setting']}): {summary['metric']} {100 * int8['test']:.2f} % on the test split, "
        f"{size(int8['size'])}, {int8['latency_ms']:.3g} ms, {int8['ratio']['value']:.3f} of the original's time"
        + (f" (measured side by side, apart from the table's: {', '.join(beside)})" if beside else "")
    )


SEARCH = Command(
    "search",
    "search, prune, fine-tune, export and measure",
    _add_search,
    _search,
    """examples:
  amc search --flops 0.5            the embedded network and data, in a minute
  amc search --flops 20M --size 500KB --model resnet20 \\
      --weights w.safetensors --data imagefolder:photos
  amc search --latency 3ms --model my_net.py:make --data my_data.py:make
  amc search --resume amc-runs/resnet8-digits-1        after an interruption""",
    main=(
        "--model",
        "--weights",
        "--data",
        "--calibration",
        "--flops",
        "--params",
        "--size",
        "--latency",
        "--evaluations",
        "--recipe",
        "--int8",
        "--config",
        "--out",
        "--resume",
    ),
)
