"""`amc init`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from amc.commands.command import Answer, Command, Text
from amc.config import Config, checked, from_dict, options, to_dict
from amc.config.schema import json_schema
from amc.errors import AmcError, ConfigError, printable


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.yaml", nargs="?", default="amc.yaml", help="the file to write [amc.yaml]")
    parser.add_argument("--defaults", action="store_true", help="ask nothing: write the answers in brackets")
    parser.add_argument("--schema", action="store_true",
                        help="print a JSON schema of the configuration for editors, and write nothing")  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question, and how its answer is read into nested settings; ``read`` raises AmcError for one that is wrong."""

    text: str
    default: str
    """The answer where none is given; empty: leave the setting out."""
    read: Callable[[str], dict[str, Any]]


def _setting(flag: str) -> Callable[[str], dict[str, Any]]:
    """Reads the answer as the value of one option."""
    (option,) = (option for option in options() if option.flag == flag)

    def read(answer: str) -> dict[str, Any]:
        return {option.path[0]: {option.path[1]: checked(option, answer)}}

    return read


def _budget(answer: str) -> dict[str, Any]:
    """Reads ``flops=0.5, size=500KB``."""
    from amc.config import BudgetConfig
    from amc.space.budget import UNITS, Budget

    parts = [part.partition("=") for part in answer.replace(",", " ").split()]
    wrong = next((name for name, equals, _ in parts if not equals), None)
    if wrong is not None:
        raise ConfigError(f"the budget is {wrong!r}, but must be like flops=0.5 or latency=3ms, size=500KB.")
    given = from_dict({"budget": {name.removeprefix("--"): value for name, _, value in parts}}).budget
    Budget.from_config(BudgetConfig(**given.model_dump())).limits(dict.fromkeys(UNITS, 1e12))
    return {"budget": {name: value for name, value in given.model_dump().items() if value is not None}}


QUESTIONS = (
    Question("Which network? (resnet20, torchvision:NAME, timm:NAME, my_net.py:make, …)", "resnet8",
             _setting("--model")),
    Question("Where are its trained weights? (a .safetensors or .pt file, or pretrained; nothing: the network of "
             "my_net.py:make has them, or resnet8 on digits)", "", _setting("--weights")),
    Question("Which data? (fashion-mnist, imagefolder:DIR, my_data.py:make, …)", "digits", _setting("--data")),
    Question("Which budget? (one or more of flops=0.5, params=100k, size=500KB, memory=0.5, latency=3ms)", "flops=0.5",
             _budget),
    Question("How many epochs of fine-tuning? (a number, 0 for none, or auto)", "auto", _setting("--finetune-epochs")),
)  # fmt: skip

_OFFERED = (
    "data.root", "data.image_size", "budget.flops", "budget.params", "budget.size", "budget.memory", "budget.latency",
    "search.searcher", "search.evaluations", "search.criterion", "search.latency_aware", "finetune.lr",
    "finetune.batch_size", "finetune.distillation", "model.weights", "seed", "device", "int8", "cache", "out",
)  # fmt: skip
"""Settings that stand in the file as comments, where they are not given."""

_EXAMPLES = {
    "model.weights": "weights.safetensors", "data.root": "data", "data.image_size": 64, "budget.flops": 0.5,
    "budget.params": "100k", "budget.size": "500KB", "budget.memory": 0.5, "budget.latency": "3ms", "cache": "auto",
    "out": "amc-runs/mine",
}  # fmt: skip


def ask(question: Question, lines: Iterator[str], interactive: bool) -> dict[str, Any]:
    """The settings that the next line answers. A person who answers wrongly is asked again; else AmcError is raised."""
    while True:
        print(f"{question.text} [{question.default or 'none'}] ", end="", file=sys.stderr, flush=True)
        answer = next(lines, "").strip() or question.default
        if not interactive:
            print(file=sys.stderr)
        try:
            return question.read(answer) if answer else {}
        except AmcError as error:
            if not interactive:
                raise
            print(printable(str(error)), file=sys.stderr)


def commented(given: Mapping[str, Any]) -> str:
    """YAML of the settings that are given, with the others that matter as comments, and the help text of each."""
    lines = ["# The configuration of a run: amc search --config THIS-FILE",
             "# Remove the # before a setting to change it. All settings: amc search --help-all"]  # fmt: skip
    section = ""
    for option in options():
        path, value = ".".join(option.path), given
        for part in option.path:
            value = value.get(part, {}) if isinstance(value, Mapping) else {}
        if value == {} and path not in _OFFERED:
            continue
        top, indent = (option.path[0], "  ") if len(option.path) > 1 else ("", "")
        if top != section:
            section = top
            lines += ["", f"{top}:"] if top else [""]
        lines += textwrap.wrap(option.help.replace("%%", "%"), 100, initial_indent=f"{indent}# ",
                               subsequent_indent=f"{indent}#   ")  # fmt: skip
        example = _EXAMPLES.get(path, option.default)
        written = _scalar(example if value == {} else value, top)
        lines.append(f"{indent}{'# ' if value == {} else ''}{option.path[-1]}: {written}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any, section: str) -> str:
    """A value as YAML; a limit that is a number without quotes."""
    with contextlib.suppress(ValueError):
        value = float(value) if section == "budget" else value
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip()[1:-1]


@dataclass(frozen=True)
class InitAnswer(Answer):
    """The file that was written."""

    path: Path
    config: Config

    def show(self) -> None:
        from amc.pipeline.trust import code_named

        trust = " --trust" if code_named(self.config) else ""
        name = printable(str(self.path))
        print(f"{name} is written. Look it over, then run: amc search --config {name}{trust}")

    def document(self) -> dict[str, Any]:
        return {"file": str(self.path), "config": to_dict(self.config)}


def _init(parsed: argparse.Namespace) -> Answer:
    if parsed.schema:
        return Text(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    path = Path(parsed.file)
    if os.path.lexists(path):
        raise ConfigError(f"{path} is there already: name another file, or remove it.")
    given: dict[str, dict[str, Any]] = {}
    lines, interactive = (iter(()), False) if parsed.defaults else (iter(sys.stdin.readline, ""), sys.stdin.isatty())
    for question in QUESTIONS:
        found = question.read(question.default) if parsed.defaults and question.default else (
            {} if parsed.defaults else ask(question, lines, interactive))  # fmt: skip
        for section, values in found.items():
            given.setdefault(section, {}).update(values)
    text = commented(given)
    config = from_dict(yaml.safe_load(text))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}.") from None
    return InitAnswer(path, config)


INIT = Command(
    "init",
    "ask five questions, and write a commented configuration",
    _add_init,
    _init,
    """examples:
  amc init                              asks, and writes amc.yaml
  amc init mine.yaml --defaults
  amc init --schema > amc.schema.json   for editors that check YAML""",
)
