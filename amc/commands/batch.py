"""`amc batch`, and `amc status`, which looks at it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amc.commands.command import NOT_MET, Command
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
    parser.add_argument("--yes", action="store_true", help="do begin with a matrix of very many runs")


def _batch(parsed: argparse.Namespace) -> int:
    from amc.batch.drive import Limits
    from amc.batch.matrix import read_matrix
    from amc.batch.plan import plan
    from amc.batch.run import refuse_many, run_batch, threads_of
    from amc.batch.screen import Screen
    from amc.pipeline.trust import refuse_plugins

    matrix = read_matrix(parsed.file, parsed.out)
    refuse_many(matrix, parsed.yes or parsed.dry_run)
    workers = whole(parsed.workers, "--workers", 1)
    retries = matrix.retries if parsed.retries is None else whole(parsed.retries, "--retries", 0)
    memory = amount(parsed.worker_memory, "--worker-memory") if parsed.worker_memory else 0
    jobs = matrix.jobs()
    if not parsed.trust and not parsed.dry_run:
        for job in jobs:
            refuse_plugins(job.config, Path(parsed.file))
    if parsed.dry_run:
        _print_plan(plan(jobs), workers)
        if matrix.could_share:
            print("every budget has a search of its own; `common: {search: {searcher: transfer}}` searches all of a "
                  "network's together, which is several times faster and finds somewhat worse networks")  # fmt: skip
        return 0
    threads = 1 if parsed.ray else threads_of(workers)
    with Screen(matrix.out) as screen:
        ended = run_batch(jobs, matrix.out, Limits(workers, threads, memory, retries), screen, parsed.ray)
    missed = _print_batch(ended.folder)
    return 1 if ended.failed else NOT_MET if missed else 0


def _print_plan(planned: Sequence[Any], workers: int) -> None:
    from amc.reports.human import seconds

    console = terminal()
    rows = [[p.job.name, p.state, _estimate(p)] for p in planned]
    console.print(table(["run", "state", "time"], rows))
    rest = [p for p in planned if p.state != "done"]
    unknown = sum(p.seconds is None for p in rest)
    total = sum(p.seconds or 0.0 for p in rest) / workers
    told = f"about {seconds(total)} with {workers} worker(s), by the runs that are done" if len(rest) > unknown else ""
    honest = f"{unknown} of them of unknown length: no run like them is done yet" if unknown else ""
    console.print(f"{len(planned)} runs, {len(planned) - len(rest)} done, {len(rest)} to do" +
                  "".join(f"; {part}" for part in (told, honest) if part and rest))  # fmt: skip


def _estimate(planned: Any) -> str:
    from amc.reports.human import seconds

    if planned.seconds is None:
        return "unknown"
    if planned.state == "done":
        return f"took {seconds(planned.seconds)}"
    return f"about {seconds(planned.seconds)} (from {planned.like} run{'s' if planned.like > 1 else ''})"


def _print_batch(folder: Path) -> bool:
    """Show the table. Gives whether a run misses its limit on latency."""
    from amc.pipeline.summary import is_missed
    from amc.reports.batch import COLUMNS, batch_rows, read_batch
    from amc.space.budget import format_cost

    networks, console = read_batch(folder), terminal()
    rows = batch_rows(networks)
    axes = list(rows[0].place) if rows else []
    console.print()
    console.print(table([*axes, *COLUMNS], [[*(row.place[axis] for axis in axes), *row.cells] for row in rows]))
    for network in networks:
        if network.reason:
            console.print(f"failed: {network.name}: {network.reason}", soft_wrap=True)
    missed = False
    for network in networks:
        for proof in network.result["proof"] if network.result else ():
            if is_missed(proof):
                missed = True
                value, limit = (format_cost("latency", proof[key]) for key in ("exported", "limit"))
                console.print(f"NOT met: {network.name}: {value} of at most {limit}", soft_wrap=True)
    console.print(f"{folder}: batch.html, and a folder for every run", soft_wrap=True)
    return missed


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of a batch or of a run")


def _status(parsed: argparse.Namespace) -> int:
    from amc.batch.screen import status_table, summary_line
    from amc.batch.status import statuses

    runs, console = statuses(Path(parsed.folder)), terminal()
    console.print(status_table(runs))
    console.print(summary_line(runs), soft_wrap=True)
    return 0


BATCH = Command(
    "batch",
    "run a matrix of networks, data, budgets, devices, searchers and seeds",
    _add_batch,
    _batch,
    """examples:
  amc batch configs/batch-digits.yaml             every run of the matrix that is not done yet; again to go on
  amc batch my.yaml --dry-run                     what would run, for how long, and what is there already
  amc batch my.yaml --workers 4 --out DIR
docs/batch.md describes the file.""",
)

STATUS = Command(
    "status",
    "how far a batch or a run is, from another shell",
    _add_status,
    _status,
    """examples:
  amc status amc-runs/batch-digits                while a batch or a run is at work, or after it""",
)
