"""The parser of the command line: short and full help, options that every command has, mistakes in one line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from amc import __version__
from amc.commands.command import Command
from amc.errors import ConfigError

EXIT_CODES = """exit codes:
  0    done
  1    some runs of a batch failed
  2    a mistake in the command, a file or the data, or no room: one line says which
  3    done, but a limit on latency is not met
  130  stopped by Ctrl-C; one line says how to go on"""

_EPILOG = f"""examples:
  amc search --flops 0.5                 halve the multiply-accumulates of the embedded network
  amc init                               answer five questions, get a configuration file
  amc doctor                             what this machine has, and what follows from it

{EXIT_CODES}

environment:
  NO_COLOR   set: no colours
  CI         set: progress as plain lines, as where stderr is no terminal

amc COMMAND --help shows the options that matter, --help-all all of them, with units and defaults."""


class Parser(argparse.ArgumentParser):
    """argparse, but help comes in two lengths, and every mistake is one line, with the closest option."""

    main: tuple[str, ...] = ()
    """The options in the short help; empty: all."""
    elsewhere: Mapping[str, str] = {}
    """Options of other commands: what their commands are called."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            raise ConfigError(self._unknown((message.removeprefix(prefix).split() or [""])[0].partition("=")[0]))
        if found := re.fullmatch(r"argument (.+): expected (one|at least one) argument", message):
            message = f"{found[1]} needs a value"
        elif found := re.fullmatch(r"the following arguments are required: (.+)", message):
            message = f"{found[1]} is missing"
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def flags(self) -> Iterator[tuple[str, argparse.Action]]:
        """Every long option that is not hidden, with what it does."""
        for action in self._actions:
            if action.help != argparse.SUPPRESS:
                yield from ((flag, action) for flag in action.option_strings if flag.startswith("--"))

    def positionals(self) -> list[argparse.Action]:
        """The arguments that are no options."""
        return [action for action in self._actions if not action.option_strings]

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument '{word}' (see {self.prog} --help)"
        close = difflib.get_close_matches(word, [flag for flag, _ in self.flags()], n=1)
        if word in self.elsewhere:
            return f"{word} is no option of {self.prog}, but of {self.elsewhere[word]}."
        how = "--help-all" if self.main else "--help"
        return f"unknown option {word}. " + (f"Did you mean '{close[0]}'?" if close else f"See {self.prog} {how}.")


class _Help(argparse.Action):
    """Prints the short help, or with ``--help-all`` all of it, and exits."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if parser.main and option_string != "--help-all":
            all_flags = [action for action in parser._actions if action.option_strings]
            for action in all_flags:
                if not {*parser.main, *_COMMON} & set(action.option_strings):
                    action.help = argparse.SUPPRESS
            parser.description += f"\nThe options that matter most follow; {parser.prog} --help-all shows all."
        parser.print_help()
        parser.exit()


_COMMON = ("--json", "--quiet", "--verbose", "--help", "--help-all")


def make_parser(commands: Mapping[str, Command]) -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of its commands."""
    parser = Parser(
        prog="amc",
        usage="amc COMMAND [OPTIONS]",
        description="Give it a trained network and a budget; get back a smaller ONNX model that provably meets it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"amc {__version__}", help="show the version, and exit")
    added = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    subs = {name: _subparser(added, command) for name, command in commands.items()}
    owners: dict[str, list[str]] = {}
    for name, sub in subs.items():
        for flag, _ in sub.flags():
            owners.setdefault(flag, []).append(f"amc {name}")
    for sub in subs.values():
        own = dict(sub.flags())
        sub.elsewhere = {flag: " and ".join(names[:2]) for flag, names in owners.items() if flag not in own}
    return parser, subs


def _subparser(added: Any, command: Command) -> Parser:
    sub: Parser = added.add_parser(
        command.name,
        prog=f"amc {command.name}",
        help=command.summary,
        description=command.summary[0].upper() + command.summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=command.epilog,
        allow_abbrev=False,
        add_help=False,
    )
    sub.main = command.main
    command.add(sub)
    sub.usage = " ".join([f"amc {command.name}", *map(_named, sub.positionals()), "[OPTIONS]"])
    group = sub.add_argument_group("output")
    if command.json and "--json" not in dict(sub.flags()):
        text = "print the result as one JSON document on stdout, everything else on stderr"
        group.add_argument("--json", action="store_true", help=text)
    group.add_argument("-q", "--quiet", action="store_true", help="no progress: only warnings, errors and results")
    group.add_argument("-v", "--verbose", action="store_true", help="log every step with its time")
    group.add_argument("-h", "--help", action=_Help, nargs=0, help="show this help, and exit")
    if command.main:
        group.add_argument("--help-all", action=_Help, nargs=0, help="show all options, and exit")
    return sub


def _named(action: argparse.Action) -> str:
    """A positional argument as the usage line has it."""
    word = str(action.metavar or action.dest)
    return {"?": f"[{word}]", "+": f"{word} ...", "*": f"[{word} ...]"}.get(str(action.nargs), word)
