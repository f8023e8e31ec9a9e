"""Pages that are written at build from what the code says: the command line and the configuration."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from amc.commands import COMMANDS
from amc.commands.parser import Parser, make_parser
from amc.config.schema import json_schema

REFERENCE = Path(__file__).parent.parent / "reference"
NOTE = "<!-- Written at build by docs/_ext/generated.py. -->\n"


def plain(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|$#])", r"\\\1", text.replace("%%", "%"))


def command_line() -> str:
    """Every command with all of its options: what ``--help-all`` shows."""
    _, subs = make_parser(COMMANDS)
    lines = [NOTE, "# Commands and options", "", (
        "All commands with all of their options, as `amc COMMAND --help-all` prints them. "
        "[The command line](../commands.md) describes output, exit codes and completion."
    ), ""]  # fmt: skip
    for name, command in COMMANDS.items():
        if command.summary != argparse.SUPPRESS and command.summary:
            lines += command_section(subs[name], command.epilog)
    return "\n".join(lines)


def command_section(sub: Parser, epilog: str) -> Iterator[str]:
    yield from (f"## {sub.prog}", "", plain(sub.description or ""), "", "```text", str(sub.usage), "```", "")
    for group in sub._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if actions:
            title = {"positional arguments": "arguments"}.get(str(group.title), str(group.title))
            yield from (f"**{plain(title[0].upper() + title[1:])}**", "")
            for action in actions:
                yield from (f"`{named(action)}`", f": {plain(action.help or '')}", "")
    if epilog:
        yield from ("```text", epilog.strip(), "```", "")


def named(action: argparse.Action) -> str:
    """An option with its value, or an argument, as help has it."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return str(action.metavar or action.dest)
    takes = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    return ", ".join(action.option_strings) + (f" {value}" if takes else "")


def configuration() -> str:
    """Every key of a configuration file, from its JSON schema."""
    schema = json_schema()
    lines = [NOTE, "# Configuration", "", (
        "Every key of a file for `--config`, and of the dictionary that `amc.Config`, `amc.compress(config=…)` and "
        "`amc.config.from_dict` take. It is made from the JSON schema `configs/amc.schema.json`, which "
        "`amc init --schema` prints; editors check and complete files with it. An option of the same meaning is in "
        "[Commands and options](command-line.md)."
    ), "", "```yaml", "budget: {flops: 0.5, size: 500KB}", "search: {evaluations: 100}", "```", ""
    ]  # fmt: skip
    sections = {key: found for key, value in schema["properties"].items() if (found := section(schema, value))}
    loose = {key: value for key, value in schema["properties"].items() if key not in sections}
    for key, found in sections.items():
        lines += [f"## `{key}`", "", plain(found.get("description", "")), "", *table(found["properties"])]
    lines += ["## Top level", "", *table(loose)]
    return "\n".join(lines)


def section(schema: Mapping[str, Any], value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    name = value.get("$ref", "").rpartition("/")[2]
    return schema["$defs"].get(name)


def table(properties: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for key, value in properties.items():
        default = value.get("default")
        shown = "" if default is None or default in ({}, []) else f"`{word(default)}`"
        yield f"| `{key}` | {plain(kind(value))} | {shown} | {plain(value.get('description', ''))} |"
    yield ""


def word(value: Any) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


def kind(value: Mapping[str, Any]) -> str:
    """The type of a value, in words."""
    if "const" in value:
        return word(value["const"])
    if "enum" in value:
        return ", ".join(map(word, value["enum"]))
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(kind(part) for part in value["anyOf"] if part.get("type") != "null"))
    words = {
        "string": "text",
        "integer": "whole number",
        "boolean": "true or false",
        "array": "list",
        "object": "mapping",
    }
    return words.get(value.get("type", ""), value.get("type", "any"))


def write(_: Sphinx) -> None:
    for name, text in (("command-line", command_line()), ("configuration", configuration())):
        path = REFERENCE / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
