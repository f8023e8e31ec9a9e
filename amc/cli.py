"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amc.commands import COMMANDS
from amc.commands.command import STDOUT, Answer
from amc.commands.parser import make_parser
from amc.commands.progress import logging_to_stderr
from amc.config import shown
from amc.errors import AmcError, ConfigError, Interrupted, RenamedWarning, did_you_mean, printable


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
    arguments = _command_first(arguments)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ConfigError(f"unknown command '{arguments[0]}'.{did_you_mean(arguments[0], COMMANDS)}")
    parser, subs = make_parser(COMMANDS)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        subs.get(parsed.command, parser).error(f"unrecognized arguments: {unknown[0]}")
    if parsed.command is None:
        parser.print_help()
        return 0
    if parsed.quiet and parsed.verbose:
        raise ConfigError("--quiet and --verbose exclude each other: leave one out.")
    with logging_to_stderr() if parsed.verbose else contextlib.nullcontext():
        return _answer(parsed)


def _command_first(arguments: Sequence[str]) -> list[str]:
    """The words in the order that the parser wants: ``amc -v search`` and ``amc help search`` are understood, too."""
    words = list(arguments)
    leading = []
    while words and words[0] in ("-q", "--quiet", "-v", "--verbose", "--json"):
        leading.append(words.pop(0))
    if words[:1] == ["help"]:
        return [*words[1:2], "--help"]
    return [*words, *leading] if words else []


def _answer(parsed: argparse.Namespace) -> int:
    """Run the command and print what it has found; gives the exit code."""
    command, as_json = COMMANDS[parsed.command], getattr(parsed, "json", False) in (True, STDOUT)
    # whatever libraries print must not come between the parts of the document
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        answer: Answer = command.run(parsed)
    if as_json:
        print(json.dumps(_finite(answer.document()), indent=2))
    else:
        answer.show()
    return answer.code


def _finite(value: Any) -> Any:
    """A document with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


if __name__ == "__main__":
    sys.exit(main())
