"""`amc batch`, and `amc status`, which looks at it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from amc.commands.command import NOT_MET, Answer, Command
from amc.commands.options import amount, whole
from amc.commands.show import table, terminal


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.yaml", help="the matrix of runs")
    parser.add_argument("--out", metavar="DIR", help="folder of the batch, one folder a run in it [amc-runs/FILE]")
    parser.add_argument("--dry-run", action="store_true", help="show what would run, and run nothing")
    parser.add_argument("--workers", metavar="N", default="1", help="runs at a time; the cores are shared out [1]")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: auto (the one that runs here) or HOST:PORT"
    )
    parser.add_argument("--retries", metavar="N", help="more attempts at a run that crashed [the file's, or 1]")
    parser.add_argument("--worker-memory", metavar="SIZE", help="most memory of one run (4GB, 512MiB) [no limit]")
    parser.add_argument("--trust", action="store_true", help="run the Python files and commands that the file names")
    parser.add_argument("--yes", action="store_true", help="start without confirmation, even with more than 200 runs")


def _batch(parsed: argparse.Namespace) -> Answer:
    from amc.batch.drive import Limits
    from amc.batch.matrix import read_matrix
    from amc.batch.plan import plan
    from amc.batch.run import refuse_many, run_batch, threads_of
    from amc.pipeline.trust import refuse_plugins

    matrix = read_matrix(parsed.file, parsed.out)
    refuse_many(matrix, parsed.yes or parsed.dry_run)
    workers = whole(parsed.workers, "--workers", 1)
    retries = matrix.retries if parsed.retries is None else whole(parsed.retries, "--retries", 0)
    memory = amount(parsed.worker_memory, "--worker-memory") if parsed.worker_memory else 0
    jobs = matrix.jobs()
    if parsed.dry_run:
        return PlanAnswer(plan(jobs), workers, matrix.could_share)
    if not parsed.trust:
        for job in jobs:
            refuse_plugins(job.config, Path(parsed.file))
    threads = 1 if parsed.ray else threads_of(workers)
    with _screen(parsed, matrix.out) as screen:
        ended = run_batch(jobs, matrix.out, Limits(workers, threads, memory, retries), screen, parsed.ray)
    return BatchAnswer(ended.folder, bool(ended.failed))


def _screen(parsed: argparse.Namespace, folder: Path) -> Any:
    from amc.batch.screen import Screen

    return Screen(folder, quiet=parsed.quiet, live=False if parsed.verbose else None)


@dataclass(frozen=True)
class PlanAnswer(Answer):
    """What a batch would run."""

    planned: Sequence[Any]
    workers: int
    could_share: bool
    """Whether one search could serve several budgets."""

    @property
    def rest(self) -> list[Any]:
        """The runs that are not done."""
        return [p for p in self.planned if p.state != "done"]

    def show(self) -> None:
        from amc.reports.human import seconds

        console, rest = terminal(), self.rest
        console.print(table(["run", "state", "time"], [[p.job.name, p.state, _estimate(p)] for p in self.planned]))
        unknown = sum(p.seconds is None for p in rest)
        total = sum(p.seconds or 0.0 for p in rest) / self.workers
        by = f"with {self.workers} worker{'' if self.workers == 1 else 's'}, by the runs that are done"
        told = f"about {seconds(total)} {by}" if len(rest) > unknown else ""
        honest = (
            f"{unknown} of unknown length: no run like {'it' if unknown == 1 else 'them'} is done yet"
            if unknown
            else ""
        )
        console.print(f"{len(self.planned)} runs, {len(self.planned) - len(rest)} done, {len(rest)} to do" +
                      "".join(f"; {part}" for part in (told, honest) if part and rest), soft_wrap=True)  # fmt: skip
        if self.could_share:
            console.print("every budget has a search of its own; `common: {search: {searcher: transfer}}` searches all "
                          "of a network's together, which is several times faster and finds somewhat worse networks",
                          soft_wrap=True)  # fmt: skip

    def document(self) -> dict[str, Any]:
        return {"runs": [{"name": p.job.name, "state": p.state, "seconds": p.seconds} for p in self.planned],
                "to_do": len(self.rest)}  # fmt: skip


def _estimate(planned: Any) -> str:
    from amc.reports.human import seconds

    if planned.seconds is None:
        return "unknown"
    if planned.state == "done":
        return f"took {seconds(planned.seconds)}"
    return f"about {seconds(planned.seconds)} (from {planned.like} run{'s' if planned.like > 1 else ''})"


@dataclass(frozen=True)
class BatchAnswer(Answer):
    """The networks of a batch."""

    folder: Path
    failed: bool
    """Whether a run failed."""

    @cached_property
    def networks(self) -> Sequence[Any]:
        """What is in the folders of the runs."""
        from amc.reports.batch import read_batch

        return read_batch(self.folder)

    @property
    def missed(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The runs that miss their limit on latency, with what was measured."""
        from amc.pipeline.summary import is_missed

        return [(network.name, proof) for network in self.networks if network.result
                for proof in network.result["proof"] if is_missed(proof)]  # fmt: skip

    @property
    def code(self) -> int:
        return 1 if self.failed else NOT_MET if self.missed else 0

    def show(self) -> None:
        from amc.reports.batch import COLUMNS, batch_rows
        from amc.space.budget import format_cost

        rows, console = batch_rows(self.networks), terminal()
        axes = list(rows[0].place) if rows else []
        console.print()
        console.print(table([*axes, *COLUMNS], [[*(row.place[axis] for axis in axes), *row.cells] for row in rows]))
        for network in self.networks:
            if network.reason:
                console.print(f"failed: {network.name}: {network.reason}", soft_wrap=True)
        for name, proof in self.missed:
            value, limit = (format_cost("latency", proof[key]) for key in ("exported", "limit"))
            console.print(f"NOT met: {name}: {value} of at most {limit}", soft_wrap=True)
        console.print(f"{self.folder}: batch.html, and a folder for every run", soft_wrap=True)

    def document(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "runs": [
                {"name": n.name, "place": dict(n.place), "met": n.met, "reason": n.reason or None,
                 "result": n.result}
                for n in self.networks
            ],
        }  # fmt: skip


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of a batch or of a run")


@dataclass(frozen=True)
class StatusAnswer(Answer):
    """How far runs are."""

    runs: Sequence[Any]

    def show(self) -> None:
        from amc.batch.screen import status_table, summary_line

        console = terminal()
        console.print(status_table(self.runs))
        console.print(summary_line(self.runs), soft_wrap=True)

    def document(self) -> dict[str, Any]:
        from amc.batch.status import time_left

        return {"runs": [asdict(run) for run in self.runs], "left": time_left(self.runs)}


def _status(parsed: argparse.Namespace) -> StatusAnswer:
    from amc.batch.status import statuses

    return StatusAnswer(statuses(Path(parsed.folder)))


BATCH = Command(
    "batch",
    "run a matrix of networks, data, budgets, devices, searchers and seeds",
    _add_batch,
    _batch,
    """examples:
  amc batch configs/batch-digits.yaml        every run that is not done yet
  amc batch my.yaml --dry-run                what would run, and for how long
  amc batch my.yaml --workers 4 --out DIR
After an interruption the same command goes on. docs/batch.md describes the file.""",
    main=("--out", "--dry-run", "--workers", "--ray", "--trust", "--yes"),
)

STATUS = Command(
    "status",
    "show the progress of a run or batch, from another shell",
    _add_status,
    _status,
    """examples:
  amc status amc-runs/batch-digits                while a batch or a run is at work, or after it""",
)
