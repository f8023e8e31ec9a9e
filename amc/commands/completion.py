"""`amc completion`: scripts that complete commands and options, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from amc.commands.command import Command, Text
from amc.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from amc.commands.parser import Parser

SHELLS = ("bash", "zsh", "fish")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")


def _completion(parsed: argparse.Namespace) -> Text:
    from amc.commands import COMMANDS
    from amc.commands.parser import make_parser

    if parsed.shell not in SHELLS:
        raise ConfigError(f"unknown shell '{parsed.shell}'.{did_you_mean(parsed.shell, SHELLS)}")
    script = {"bash": bash, "zsh": zsh, "fish": fish}[parsed.shell]
    commands = {name: command for name, command in COMMANDS.items() if name != "searchers"}
    _, parsers = make_parser(commands)
    return Text(script({name: command.summary for name, command in commands.items()}, parsers))


def _choices(action: argparse.Action, command: str) -> tuple[str, ...]:
    """The words that may follow an option or stand for a positional argument; empty: files."""
    if command == "list" and action.dest == "what":
        from amc.commands.list import KINDS

        return tuple(KINDS)
    if command == "completion" and action.dest == "shell":
        return SHELLS
    words = str(action.metavar or "").split("|")
    return tuple(words) if len(words) > 1 else ()


def _value_flags(parser: Parser) -> list[tuple[str, argparse.Action]]:
    """The options that a value follows."""
    return [(flag, action) for flag, action in parser.flags() if action.nargs != 0]


def _values_after(command: str, parser: Parser) -> list[tuple[str, str]]:
    """Every option, or the command itself for a positional argument, and the words that may follow it."""
    places = [*_value_flags(parser), *((command, action) for action in parser.positionals())]
    found = [(word, " ".join(_choices(action, command))) for word, action in places]
    return [(word, values) for word, values in found if values]


_BASH = """# amc for bash: eval "$(amc completion bash)", or save it to ~/.local/share/bash-completion/completions/amc
_amc() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
    local words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@ --help --version" -- "$word"))
        return
    fi
    case "$command $before" in
@CHOICES@
    esac
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
        return
    fi
    if [[ "$word" == -* ]]; then
        case "$command" in
@FLAGS@
        esac
        COMPREPLY=($(compgen -W "$words" -- "$word"))
        return
    fi
    COMPREPLY=($(compgen -f -- "$word"))
}
complete -o filenames -F _amc amc"""


def bash(summaries: Mapping[str, str], parsers: Mapping[str, Parser]) -> str:
    """A script for bash."""
    choices, flags = [], []
    for name, parser in parsers.items():
        flags.append(f'            {name}) words="{" ".join(flag for flag, _ in parser.flags())}" ;;')
        for word, values in _values_after(name, parser):
            choices.append(f'        "{name} {word}") words="{values}" ;;')
    parts = {"COMMANDS": " ".join(summaries), "CHOICES": "\n".join(choices), "FLAGS": "\n".join(flags)}
    return _filled(_BASH, parts)


_ZSH = """#compdef amc
# amc for zsh: eval "$(amc completion zsh)", or save it as _amc in a folder of $fpath
_amc() {
    local -a commands options
    commands=(
@COMMANDS@
    )
    if (( CURRENT == 2 )); then
        _describe -t commands command commands
        return
    fi
    case "$words[2] $words[CURRENT-1]" in
@CHOICES@
    esac
    if [[ "$PREFIX" != -* ]]; then
        _files
        return
    fi
    case "$words[2]" in
@FLAGS@
    esac
    _describe -t options option options
}
if [ "$funcstack[1]" = _amc ]; then
    _amc "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _amc amc
fi"""


def zsh(summaries: Mapping[str, str], parsers: Mapping[str, Parser]) -> str:
    """A script for zsh."""
    choices, flags = [], []
    for name, parser in parsers.items():
        told = "\n".join(f"            {_quoted(_escaped(flag, action.help))}" for flag, action in parser.flags())
        flags.append(f"        {name}) options=(\n{told}\n        ) ;;")
        for word, values in _values_after(name, parser):
            choices.append(f'        "{name} {word}") compadd -- {values}; return ;;')
    commands = "\n".join(f"        {_quoted(_escaped(name, text))}" for name, text in summaries.items())
    return _filled(_ZSH, {"COMMANDS": commands, "CHOICES": "\n".join(choices), "FLAGS": "\n".join(flags)})


def _escaped(word: str, text: str | None) -> str:
    """A word and its description, as _describe reads them."""
    return f"{word}:{_short(text)}".replace("\\", "\\\\")


def fish(summaries: Mapping[str, str], parsers: Mapping[str, Parser]) -> str:
    """A script for fish."""
    lines = ["# amc for fish: amc completion fish > ~/.config/fish/completions/amc.fish",
             "complete -c amc -n __fish_use_subcommand -f -l help -d 'show the commands'",
             "complete -c amc -n __fish_use_subcommand -f -l version -d 'show the version'"]  # fmt: skip
    for name, text in summaries.items():
        lines.append(f"complete -c amc -n __fish_use_subcommand -f -a {name} -d {_quoted(_short(text), fish=True)}")
    for name, parser in parsers.items():
        within = f"complete -c amc -n '__fish_seen_subcommand_from {name}'"
        values = dict(_value_flags(parser))
        for flag, action in parser.flags():
            words = _choices(action, name)
            value = f" -x -a '{' '.join(words)}'" if words else " -r" if flag in values else ""
            lines.append(f"{within} -l {flag.removeprefix('--')}{value} -d {_quoted(_short(action.help), fish=True)}")
        for action in parser.positionals():
            if words := _choices(action, name):
                lines.append(f"{within} -f -a '{' '.join(words)}'")
    return "\n".join(lines)


def _short(text: str | None) -> str:
    """The beginning of a help text."""
    head = (text or "").replace("%%", "%").partition(" [")[0].partition(": ")[0]
    return head if len(head) <= 60 else f"{head[:59].rstrip()}…"


def _quoted(text: str, fish: bool = False) -> str:
    """A text in single quotes."""
    return "'" + (text.replace("\\", "\\\\").replace("'", "\\'") if fish else text.replace("'", "'\\''")) + "'"


def _filled(template: str, parts: Mapping[str, str]) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


COMPLETION = Command(
    "completion",
    "print a script that completes commands and options in your shell",
    _add_completion,
    _completion,
    """examples:
  eval "$(amc completion bash)"         in ~/.bashrc
  eval "$(amc completion zsh)"          in ~/.zshrc
  amc completion fish > ~/.config/fish/completions/amc.fish""",
    json=False,
)
