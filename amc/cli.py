"""The command line: parse, call, print. Exit codes: 0 done, 2 the user's mistake, 130 interrupted.

Options come from the configuration's dataclasses. Heavy imports are inside the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from amc import __version__
from amc.config import Config, Option, convert, from_dict, merge, options, read_yaml
from amc.errors import AmcError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = {
    "search": """examples:
  amc search --flops 0.5                       the embedded network and data, in about a minute
  amc search --flops 20M --size 500KB --model resnet20 --weights w.safetensors --data imagefolder:DIR
  amc search --flops 0.5 --model my_net.py:make --data my_data.py:make --finetune-epochs 5
  amc search --latency 0.5 --model resnet20 --weights w.safetensors --data imagefolder:DIR
  amc search --resume amc-runs/resnet8-digits-1   go on with a run that was interrupted""",
    "train": """examples:
  amc train --model resnet20 --data fashion-mnist --finetune-epochs 5 --out resnet20.safetensors""",
    "inspect": """examples:
  amc inspect --model resnet20 --data cifar10 --data-root DIR --weights random""",
    "evaluate": """examples:
  amc evaluate amc-runs/resnet8-digits-1""",
    "measure": """examples:
  amc measure original.onnx model.onnx            how much faster, and how sure that is
  amc measure a.onnx b.onnx c.onnx --threads 2 --seconds 60 --json measured.json
  amc measure a.onnx --input-size 3,224,224       for a model that takes any size""",
    "batch": """examples:
  amc batch configs/batch-digits.yaml             every run of the matrix that is not done yet; again to go on
  amc batch my.yaml --dry-run                     what would run, for how long, and what is there already
  amc batch my.yaml --workers 4 --out DIR
docs/batch.md describes the file.""",
    "status": """examples:
  amc status amc-runs/batch-digits                while a batch or a run is at work, or after it""",
    "cache": """examples:
  amc cache                                       what is kept, and how large it is
  amc cache --clear
$AMC_CACHE names the folder, $AMC_CACHE_BYTES the most that it may hold (2 GiB).""",
    "profile": """examples:
  amc profile --model resnet56 --data cifar10 --data-root DIR --out resnet56.profile.json
  amc search --latency 0.5 --latency-model resnet56.profile.json --model resnet56 --weights w.safetensors ...""",
    "searchers": "",
}

_GROUPS = {
    "model": "the network",
    "data": "the data",
    "budget": "the budget (at least one; all given must hold)",
    "search": "the search",
    "finetune": "fine-tuning",
    "": "the run",
}


class _Parser(argparse.ArgumentParser):
    """argparse, but an unknown option comes with a suggestion, and every mistake is one line."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            message = f"unknown option {word}.{did_you_mean(word, flags)}"
        raise ConfigError(f"{message} (see {self.prog} --help)" if "--help" not in message else message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except AmcError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        again = "the same command again" if "batch" in sys.argv[1:2] else "amc search --resume DIR"
        print(f"amc: stopped; nothing that was finished is lost. Go on with: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}. What was finished is kept; go on with --resume DIR.")
    except MemoryError:
        _complain("out of memory. Use fewer --search-images or --calibration-images, or a smaller --batch-size.")
    return 2


def _complain(message: str) -> None:
    print(f"amc: {' '.join(message.split())}", file=sys.stderr)


def _main(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="amc",
        description="Give it a trained network and a budget; get back a smaller ONNX model that provably meets it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="amc COMMAND --help explains every option with its unit and default.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"amc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    subs = {}
    for name, (summary, add, _) in _COMMANDS.items():
        subs[name] = sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=EPILOG[name],
            allow_abbrev=False,
        )
        add(sub)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        raise ConfigError(f"unknown command '{arguments[0]}'.{did_you_mean(arguments[0], _COMMANDS)}")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        subs.get(parsed.command, parser).error(f"unrecognized arguments: {unknown[0]}")
    if parsed.command is None:
        parser.print_help()
        return 0
    return _COMMANDS[parsed.command][2](parsed)


def _add_options(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> None:
    groups: dict[str, Any] = {}
    for option in options():
        top = option.path[0] if len(option.path) > 1 else ""
        if top in leave_out:
            continue
        group = groups.setdefault(top, parser.add_argument_group(_GROUPS[top]))
        _add_option(group, option)
    groups.setdefault("", parser.add_argument_group(_GROUPS[""])).add_argument(
        "--config",
        metavar="FILE.yaml",
        help="read the configuration from a file; options given here override it",
    )


def _add_option(group: Any, option: Option) -> None:
    shown = {True: "on", False: "off"}.get(option.default, option.default) if option.type is bool else option.default
    default = "" if shown is None or "[" in option.help else f" [{shown}]"
    common = {"dest": ".".join(option.path), "default": None, "help": option.help + default}
    if option.type is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
    else:
        kind = {int: "N", float: "X"}.get(option.type, option.flag.rpartition("-")[2].upper())
        group.add_argument(option.flag, metavar="|".join(option.choices) or kind, **common)


def _configuration(parsed: argparse.Namespace) -> Config:
    """The file's configuration with the command line's over it."""
    values = read_yaml(parsed.config) if parsed.config else {}
    return from_dict(merge(values, _given(parsed)))


def _given(parsed: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for option in options():
        value = getattr(parsed, ".".join(option.path), None)
        if value is not None:
            here = given
            for part in option.path[:-1]:
                here = here.setdefault(part, {})
            here[option.path[-1]] = convert(value, option.type, option.flag)
    return given


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_options(parser)
    parser.add_argument("--resume", metavar="DIR", help="go on with the run in DIR, as it was configured")
    parser.add_argument("--trust", action="store_true", help="with --resume: run the Python files that the run names")
    parser.add_argument("--ray", metavar="ADDRESS", help="evaluate on a Ray cluster: auto (the one here) or HOST:PORT")
    parser.add_argument("--workers", metavar="N", default="2", help="with --ray: policies evaluated at a time [2]")


def _search(parsed: argparse.Namespace) -> int:
    from amc.monitor import shown
    from amc.run import run

    given = _given(parsed)
    if parsed.resume and (given or parsed.config):
        raise ConfigError("--resume goes on with a run as it was configured: give no other options with it.")
    config = Config() if parsed.resume else _configuration(parsed)
    with shown() as monitor, _elsewhere(parsed) as elsewhere:
        result = run(config, parsed.resume, monitor, parsed.trust, elsewhere)
    _print_result(result.summary, result.folder)
    return 0


@contextlib.contextmanager
def _elsewhere(parsed: argparse.Namespace) -> Iterator[Any]:
    """Where policies are scored: None for here."""
    if parsed.ray is None:
        yield None
        return
    from amc.batch.cluster import RemoteScores, connected

    count = _whole(parsed.workers, "--workers", 1)
    with connected(parsed.ray):
        yield functools.partial(RemoteScores, count=count)


def _print_result(summary: Any, folder: Path) -> None:
    from amc.budget import told
    from amc.reports import final_table

    console = _console()
    console.print()
    rows = [[r.label, r.original, r.after_pruning, r.final, r.ratio] for r in final_table(summary)]
    console.print(_table(["", "original", "pruned", "fine-tuned", "ratio"], rows))
    for proof in summary["proof"]:
        value, limit = (told(proof["resource"], proof[key]) for key in ("exported", "limit"))
        console.print(f"met: {value} of at most {limit} ({proof['how']})")
    if summary.get("int8"):
        int8 = summary["int8"]
        console.print(
            f"model.int8.onnx ({int8['setting']}): {summary['metric']} {100 * int8['test']:.2f} % on the test split, "
            f"{int8['latency_ms']:.3g} ms, {int8['ratio']['value']:.3f} of the original's time"
        )
    for note in summary["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(f"{folder}: model.onnx, report.html and all the rest", markup=False)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(*[columns[0]], box=None, pad_edge=False, header_style="bold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, ("budget", "search"))


def _train(parsed: argparse.Namespace) -> int:
    from amc.monitor import shown
    from amc.training import train_network

    given = _given(parsed)
    given.setdefault("model", {}).setdefault("weights", "random")
    values = merge(read_yaml(parsed.config) if parsed.config else {}, given)
    with shown() as monitor:
        report = train_network(from_dict(values), monitor)
    print(f"{report.path}: {report.metric} {100 * report.search:.2f} % on the search split, "
          f"{100 * report.test:.2f} % on the test split")  # fmt: skip
    return 0


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, ("budget", "finetune"))


def _inspect(parsed: argparse.Namespace) -> int:
    from amc.graph import build_graph
    from amc.policy import legal_widths
    from amc.problem import site_features
    from amc.resources import ResourceModel
    from amc.run import open_task

    given = _given(parsed)
    name = given.get("model", {}).get("name")
    if name:
        given["model"].setdefault("weights", "random")
    config = from_dict(merge(read_yaml(parsed.config) if parsed.config else {}, given))
    task = open_task(config)
    graph = build_graph(task.model, task.example)
    costs = ResourceModel(graph, task.model).cost([s.channels for s in graph.sites])
    console = _console()
    console.print(f"{task.name}: {costs['macs'] / 1e6:,.2f} M MACs, {costs['params']:,.0f} parameters, "
                  f"{costs['memory'] / 1e3:,.0f} kB of activations at most", markup=False)  # fmt: skip
    rows = []
    for site, features in zip(graph.sites, site_features(graph), strict=True):
        widths = legal_widths(site.channels, config.search.min_keep, config.search.channel_step)
        told = f"{widths[0]}…{widths[-2]}, {widths[-1]}" if len(widths) > 3 else ", ".join(map(str, widths))
        rows.append(
            [
                site.name,
                str(site.channels),
                told,
                f"{features.macs / 1e6:,.2f} M",
                str(len(site.layers)),
                str(len(site.consumers)),
            ]
        )
    console.print(_table(["site", "channels", "widths", "MACs", "layers cut", "layers reading"], rows))
    for site in graph.sites:
        console.print(f"{site.name}: {', '.join(site.layers)} → {', '.join(site.consumers)}", markup=False)
    for refusal in graph.refusals:
        console.print(f"not prunable: {refusal.name} ({refusal.channels} channels): {refusal.reason}", markup=False)
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="DIR", help="the folder of a finished run")
    parser.add_argument("--trust", action="store_true", help="run the Python files that the run names")


def _evaluate(parsed: argparse.Namespace) -> int:
    from amc.training import evaluate_bundle

    scores = evaluate_bundle(Path(parsed.bundle), parsed.trust)
    now, recorded = 100 * scores.test, 100 * scores.recorded
    print(f"model.onnx: {scores.metric} {now:.2f} % on the test split (recorded: {recorded:.2f} %)")
    return 0


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL.onnx", nargs="+", help="ONNX models; the first one is the baseline")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of ONNX Runtime [1]")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="X", help="longest time to measure for [20]")
    parser.add_argument("--precision", type=float, default=0.005, metavar="X",
                        help="stop when every ratio's 95%% interval is within this share of it [0.005]")  # fmt: skip
    parser.add_argument("--input-size", metavar="C,H,W", help="the input's shape after the batch, where a model "
                        "leaves it open")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the numbers to a file too")


def _measure(parsed: argparse.Namespace) -> int:
    from amc.files import write_json
    from amc.latency import Runner, measure, peak_memory
    from amc.monitor import shown

    shape = convert(parsed.input_size, tuple[int, ...] | None, "--input-size")
    paths = [Path(model) for model in parsed.models]
    inputs = Runner(paths[0], max(1, parsed.threads)).inputs(shape)
    names = [f"{i}. {path.name}" if len(paths) > 1 else str(path) for i, path in enumerate(paths, 1)]
    where = _where(parsed.threads, inputs.shape)
    with shown() as monitor:
        monitor.begin("measure")
        found = measure(dict(zip(names, paths, strict=True)), inputs, parsed.threads, parsed.seconds, parsed.precision,
                        progress=monitor.progress)  # fmt: skip
        memory = {name: peak_memory(path, inputs.shape, parsed.threads)
                  for name, path in zip(names, paths, strict=True)}  # fmt: skip
    where["load_after"] = os.getloadavg()[0]
    _print_measured(found, memory, where)
    noisy = found.spread > 4 * parsed.precision
    if noisy:
        _console().print(
            f"note: the machine is too noisy to tell: a ratio is known to ±{100 * found.spread:.1f} % only. "
            "Measure for longer (--seconds), or when less else is running."
        )
    if parsed.json:
        models = {name: {**asdict(x), "peak_memory": memory[name]} for name, x in found.latencies.items()}
        write_json(Path(parsed.json), {"format": "amc-measure", "version": 1, "models": models,
                                       "rounds": found.rounds, "too_noisy": noisy, **where})  # fmt: skip
    return 0


def _where(threads: int, shape: Sequence[int]) -> dict[str, Any]:
    """Where and with what latency is measured."""
    from amc.provenance import cpu_name, load, runtime_version

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
    console = _console()
    console.print(_table(["ms", "min", "10 %", "median", "ratio", "95 % interval", "peak memory"], rows))
    console.print(f"{found.rounds} rounds in random order, {found.threads} thread(s), inputs {where['inputs']}; "
                  f"{where['runtime']}, {where['cpu']}, load {where['load_before']:.1f} before and "
                  f"{where['load_after']:.1f} after. Peak memory is what loading and running the model adds to a "
                  "process of its own.", markup=False, soft_wrap=True)  # fmt: skip


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
    parser.add_argument("--yes", action="store_true", help="do begin with a matrix of very many runs")


def _batch(parsed: argparse.Namespace) -> int:
    from amc.batch.drive import Limits
    from amc.batch.matrix import read_matrix
    from amc.batch.plan import plan
    from amc.batch.run import refuse_many, run_batch, threads_of
    from amc.batch.screen import Screen

    matrix = read_matrix(parsed.file, parsed.out)
    refuse_many(matrix, parsed.yes or parsed.dry_run)
    workers = _whole(parsed.workers, "--workers", 1)
    retries = matrix.retries if parsed.retries is None else _whole(parsed.retries, "--retries", 0)
    memory = _bytes(parsed.worker_memory, "--worker-memory") if parsed.worker_memory else 0
    jobs = matrix.jobs()
    if parsed.dry_run:
        _print_plan(plan(jobs), workers)
        return 0
    threads = 1 if parsed.ray else threads_of(workers)
    with Screen(matrix.out) as screen:
        ended = run_batch(jobs, matrix.out, Limits(workers, threads, memory, retries), screen, parsed.ray)
    _print_batch(ended.folder)
    return 1 if ended.failed else 0


def _whole(value: str, flag: str, least: int) -> int:
    number = convert(value, int, flag)
    if number < least:
        raise ConfigError(f"{flag} is {number}, but must be {least} or more.")
    return int(number)


def _bytes(value: str, flag: str) -> int:
    """Bytes, or a share of what the machine has."""
    from amc.budget import parse_limit

    return int(parse_limit(flag.removeprefix("--"), value, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def _print_plan(planned: Sequence[Any], workers: int) -> None:
    from amc.reports.human import seconds

    console = _console()
    rows = [[p.job.name, p.state, _estimate(p)] for p in planned]
    console.print(_table(["run", "state", "time"], rows))
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


def _print_batch(folder: Path) -> None:
    from amc.reports.batch import COLUMNS, batch_rows, read_batch

    networks, console = read_batch(folder), _console()
    rows = batch_rows(networks)
    axes = list(rows[0].place) if rows else []
    console.print()
    console.print(_table([*axes, *COLUMNS], [[*(row.place[axis] for axis in axes), *row.cells] for row in rows]))
    for network in networks:
        if network.reason:
            console.print(f"failed: {network.name}: {network.reason}", markup=False, soft_wrap=True)
    console.print(f"{folder}: batch.html, and a folder for every run", markup=False, soft_wrap=True)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of a batch or of a run")


def _status(parsed: argparse.Namespace) -> int:
    from amc.batch.screen import status_table, summary_line
    from amc.batch.status import statuses

    runs, console = statuses(Path(parsed.folder)), _console()
    console.print(status_table(runs))
    console.print(summary_line(runs), markup=False, soft_wrap=True)
    return 0


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="DIR", help="another folder than the user's own")
    parser.add_argument("--clear", action="store_true", help="remove everything that is kept")


def _cache(parsed: argparse.Namespace) -> int:
    from amc.cache import Cache, cache_folder
    from amc.reports.human import size

    cache = Cache(Path(parsed.folder) if parsed.folder else cache_folder())
    if parsed.clear:
        print(f"{cache.folder}: {size(cache.clear())} freed")
        return 0
    kinds: dict[str, list[int]] = {}
    for entry in cache.entries():
        kinds.setdefault(entry.kind, []).append(entry.size)
    if kinds:
        rows = [[kind, str(len(sizes)), size(sum(sizes))] for kind, sizes in sorted(kinds.items())]
        _console().print(_table(["kind", "entries", "size"], rows))
    print(f"{cache.folder}: {size(sum(map(sum, kinds.values())))} of at most {size(cache.limit)}")
    return 0


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_options(parser, ("budget", "search", "finetune"))


def _profile(parsed: argparse.Namespace) -> int:
    from amc.monitor import shown
    from amc.pace import steps
    from amc.policy import legal_widths
    from amc.run import open_task
    from amc.timing import profile_network

    given = _given(parsed)
    given.setdefault("model", {}).setdefault("weights", "random")  # what they are does not matter to time
    config = from_dict(merge(read_yaml(parsed.config) if parsed.config else {}, given))
    path = Path(config.out or "profile.json")
    with shown() as monitor:
        monitor.begin("profile")
        model = profile_network(open_task(config), config, path, monitor.progress)
    profile, error, console = model.profile, model.errors, _console()
    legal = steps(model.predict_all, [legal_widths(c, 0.1) for c in profile.full])
    rows = [[name, str(full), ", ".join(map(str, own))] for name, full, own in
            zip(profile.sites, profile.full, legal, strict=True)]  # fmt: skip
    console.print(_table(["site", "channels", "widths at which the time changes"], rows))
    console.print(
        f"{path}: {len(profile.samples)} networks measured, the original takes {profile.original_ms:.4g} ms; "
        f"channels are computed in blocks of {model.block}",
        markup=False,
    )
    console.print(
        f"cross-validated: mean error {100 * error.mean:.2f} %, worst {100 * error.worst:.1f} %, Spearman "
        f"{error.spearman:.3f}"
    )
    return 0


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """No options."""


def _searchers(parsed: argparse.Namespace) -> int:
    from amc.search import searchers

    _console().print(_two_columns([(s.name, s.summary) for s in searchers().values()]))
    return 0


def _two_columns(rows: Sequence[tuple[str, str]]) -> str:
    wide = max((len(first) for first, _ in rows), default=0)
    return "\n".join(f"{first:<{wide}} {second}" for first, second in rows)


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "search": ("search, prune, fine-tune, export and measure", _add_search, _search),
    "train": ("train a network where there is none, into a safetensors file", _add_train, _train),
    "inspect": ("list what can be pruned in a network, and what cannot and why", _add_inspect, _inspect),
    "evaluate": ("run a bundle's ONNX model on the test split again", _add_evaluate, _evaluate),
    "measure": ("time ONNX models side by side on ONNX Runtime", _add_measure, _measure),
    "profile": ("learn what a network's policies take on this machine, for --latency", _add_profile, _profile),
    "batch": ("run a matrix of networks, data, budgets, devices, searchers and seeds", _add_batch, _batch),
    "status": ("how far a batch or a run is, from another shell", _add_status, _status),
    "cache": ("what is kept for runs to share, and clearing it", _add_cache, _cache),
    "searchers": ("list the searchers", _add_nothing, _searchers),
}

if __name__ == "__main__":
    sys.exit(main())
