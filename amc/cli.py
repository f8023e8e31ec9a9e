"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from amc import __version__
from amc.commands import COMMANDS
from amc.config import shown
from amc.errors import AmcError, ConfigError, Interrupted, RenamedWarning, did_you_mean, printable

EXIT_CODES = """exit codes:
  0    done
  1    some runs of a batch failed
  2    a mistake in the command, a file or the data, or no room: one line says which
  3    done, but a limit on latency is not met
  130  stopped by Ctrl-C; one line says how to go on"""


class _Parser(argparse.ArgumentParser):
    """argparse, but an unknown option comes with a suggestion, and every mistake is one line."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = (message.removeprefix(prefix).split() or [""])[0].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            message = f"unknown option {word}.{did_you_mean(word, flags)}"
        raise ConfigError(f"{message} (see {self.prog} --help)" if "--help" not in message else message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code."""
    try:
        with _warnings_as_lines():
            return _main(sys.argv[1:] if arguments is None else arguments)
    except AmcError as error:
        _complain(str(error))
    except KeyboardInterrupt as stop:
        # where a string was being executed, CPython would end by the signal all the same: this clears its note
        exec("")
        word = (sys.argv[1:] if arguments is None else arguments)[:1]
        again = str(stop) if isinstance(stop, Interrupted) else "the same command again"
        kept = isinstance(stop, Interrupted) or (word and word[0] in ("batch", "train"))
        _complain(f"stopped; nothing that was finished is lost. Go on with: {again}" if kept else "stopped.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}. What was finished is kept; go on with --resume DIR.")
    except MemoryError:
        _complain("out of memory. Use fewer --search-images or --calibration-images, or a smaller --batch-size.")
    return 2


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """While this lasts, what is called otherwise now is told in one line, once."""
    told: set[str] = set()
    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.simplefilter("always", RenamedWarning)

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, RenamedWarning):
                before(message, category, *where, **more)
            elif str(message) not in told:
                told.add(str(message))
                print(f"amc: warning: {printable(str(message))}", file=sys.stderr)

        warnings.showwarning = show
        yield


def _complain(message: str) -> None:
    print(f"amc: {printable(message)}", file=sys.stderr)


def _main(arguments: Sequence[str]) -> int:
    wrong = next((word for word in arguments if not word or "\0" in word), None)
    if wrong is not None:
        raise ConfigError(f"an argument is {shown(wrong)}: {'it must not hold NUL' if wrong else 'leave it out'}.")
    parser = _Parser(
        prog="amc",
        description="Give it a trained network and a budget; get back a smaller ONNX model that provably meets it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{EXIT_CODES}\n\namc COMMAND --help explains every option with its unit and default.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"amc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    subs = {}
    for name, command in COMMANDS.items():
        subs[name] = sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=command.epilog,
            allow_abbrev=False,
        )
        command.add(sub)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ConfigError(f"unknown command '{arguments[0]}'.{did_you_mean(arguments[0], COMMANDS)}")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        subs.get(parsed.command, parser).error(f"unrecognized arguments: {unknown[0]}")
    if parsed.command is None:
        parser.print_help()
        return 0
    return COMMANDS[parsed.command].run(parsed)


if __name__ == "__main__":
    sys.exit(main())
