"""Command lines, configurations and batch files: whatever is in them ends in one line, and leaves nothing behind.

Runs end where the network would be loaded, so only what is checked before is tested.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tests.fuzz.files import changed, damaged_bytes
from tests.fuzz.harness import Accepted, plain

WORDS = (
    "", "-", "--", "=", "x", "0", "1", "-1", "0.5", "50%", "20M", "1e3", "1e309", "-1e308", "nan", "inf", "-inf",
    "0x10",
    "1_000", "٣", "１", "²", "9" * 5000, "9" * 30, "2147483648", "auto", "on", "off", "true", "null", "None", "[/x]",
    "\x1b[31m", "a\0b", "ä", "\ud800", "a b", "../..", "/", ".", "~", "/dev/zero", "/dev/null", "nowhere/x", "a" * 300,
    "tpe", "obs", "cpu", "cuda", "cuda:99", "meta", "digits", "resnet8", "my.py:make", "my.py:", ":", ".py:x", "a=1",
    "a=", "=1", "a=nan", "population=32", "command:true", "command:", "command:'", "table.csv", "sqlite:///x/y.db",
    "postgresql://u:hunter2@h:99999999/d", "nonsense://x", "mlflow:", "tensorboard:", "wandb:x", "0.1,0.2", ",", "1,",
    "3,224,224", "5%%", "0ms", "3ms", "500KB", "1e400KB", "-5", "--flops", "--help", "imagefolder:", "imagefolder:/dev",
    "sqlite:///y.db", "y.db", "new/study.log", "sqlite:///y.db?timeout=soon",
)  # fmt: skip

CONFIG: dict[str, Any] = {
    "model": {"name": "resnet8", "weights": None}, "data": {"name": "digits", "search": 50, "mean": [0.1]},
    "budget": {"flops": "0.5", "size": "500KB"}, "seed": 1, "out": "run", "threads": "auto", "int8": False,
    "search": {"searcher": "tpe", "evaluations": 9, "searcher_options": {"startup": 3}, "storage": None},
    "finetune": {"epochs": 1, "schedule": "iterative", "schedule_options": {"steps": 3}}, "cache": "auto",
}  # fmt: skip
BATCH: dict[str, Any] = {
    "models": {"resnet8": {}, "vgg": {"name": "vgg16bn", "weights": "w.pt"}}, "data": ["digits"],
    "budgets": {"half": {"flops": 0.5}, "third": {"flops": "30%", "params": "100k"}},
    "devices": {"phone": {"size": "500KB", "threads": 2, "resources": {"GPU": 1}}, "board": {"memory": 0.5}},
    "searchers": {"tpe": {"evaluations": 9}, "fast": {"searcher": "uniform", "evaluations": 1}}, "seeds": [0, 1],
    "common": {"finetune": {"epochs": 3}}, "exclude": [{"model": "resnet8", "device": "board"}], "retries": 1,
    "overrides": [{"match": {"searcher": "fast"}, "set": {"finetune": {"epochs": 1}}}], "out": "out",
}  # fmt: skip
YAML = (
    "&a [*a]", "*a", "!!python/object/apply:os.system [touch ran]", "!!binary aGk=", "!!set {a, b}", "<<: *a",
    "{<<: {flops: 1}}", "2020-01-01", "0o17", "1:30:30", "0x1F", "~", "? a\n: b", "a: b: c", "\t", "---\n", "...\n",
    "%YAML 9.9\n---\n", "- " * 3000, "[" * 3000, "{a: " * 500, "'", '"\\x', '"\\uD800"', "&x " * 500, "9" * 5000,
    ".nan",
    "1e999", "-.inf", "!!float 'x'", "!!int ''", "!!timestamp x", "\ufeff", "\x07", "yes", "=",
)  # fmt: skip


@cache
def commands() -> dict[str, list[str]]:
    """Command → its options."""
    import argparse

    from amc.commands import COMMANDS

    found = {}
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser()
        command.add(parser)
        found[name] = [word for action in parser._actions for word in action.option_strings]
    return found


def options(rng: random.Random, folder: Path) -> None:
    """A command with random options."""
    name = rng.choice(sorted(commands()))
    words = [name] if rng.random() < 0.97 else [rng.choice(WORDS)]
    if rng.random() < 0.5 and name == "search":
        words += ["--flops", "0.5"]
    for _ in range(rng.choice((1, 1, 2, 2, 3, 5))):
        option = rng.choice(commands()[name]) if rng.random() < 0.9 else rng.choice(WORDS)
        value = rng.choice(WORDS)
        words += [f"{option}={value}"] if rng.random() < 0.2 else [option, value] if rng.random() < 0.9 else [option]
    if rng.random() < 0.3:
        words.append(rng.choice(WORDS))
    if name == "cache":  # no folder but the case's own
        words = [
            name,
            "--folder",
            rng.choice(("x", ".", "a\0b", "")),
            *[w for w in words[1:] if w in ("--clear", "--x")],
        ]
    if name == "init":  # which otherwise writes a file, as it should
        words.append("--schema")
    _commanded(words, folder)


def search(rng: random.Random, folder: Path) -> None:
    """A configuration that is damaged."""
    (folder / "c.yaml").write_bytes(_written(rng, CONFIG))
    _commanded(["search", "--config", "c.yaml", *(["--trust"] if rng.random() < 0.5 else [])], folder)


def batch(rng: random.Random, folder: Path) -> None:
    """A batch file that is damaged."""
    (folder / "b.yaml").write_bytes(_written(rng, BATCH))
    _commanded(["batch", "b.yaml", "--dry-run"], folder)


def _written(rng: random.Random, values: dict[str, Any]) -> bytes:
    value: Any = plain(values)
    if rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 2, 3))):
            value = changed(rng, value)
    text = yaml.safe_dump(value, sort_keys=False)
    if rng.random() < 0.4:
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        key, colon, _ = lines[at].partition(":")
        piece = rng.choice(YAML)
        lines[at] = f"{key}{colon} {piece}" if rng.random() < 0.7 else piece
        text = "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    return damaged_bytes(rng, content, "c.yaml") if rng.random() < 0.2 else content


def _commanded(words: list[str], folder: Path) -> None:
    """Run a command in the folder. Raise Accepted where it is not met as it must be."""
    from amc.cli import main

    before = _content(folder)
    said, told = io.StringIO(), io.StringIO()
    with _here(folder), _ending(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            code: object = main(words)
        except SystemExit as stop:
            code = stop.code
    lines = told.getvalue().splitlines()
    where = f"amc {' '.join(words)[:300]!r}: "
    if code not in (0, 2, 3):
        raise Accepted(f"{where}it exits with {code!r}")
    errors = [line for line in lines if line.startswith("amc: ") and not line.startswith("amc: warning: ")]
    if code == 2 and (len(errors) != 1 or not errors[0].isprintable() or len(errors[0]) > 1500):
        raise Accepted(f"{where}it is told as {told.getvalue()[:300]!r}")
    if "Traceback" in told.getvalue():
        raise Accepted(f"{where}it says {told.getvalue()[-300:]!r}")
    if not all(line.isprintable() for line in said.getvalue().splitlines()):
        raise Accepted(f"{where}it prints what a terminal acts on")
    if _content(folder) != before:
        raise Accepted(f"{where}it leaves {sorted(set(_content(folder)) ^ set(before))} behind")


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@contextlib.contextmanager
def _here(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """No network is loaded, and nothing outside of the folder is looked at."""
    from amc.errors import ModelError

    def ended(*_: object, **__: object) -> None:
        raise ModelError("that far.")

    places = ("amc.pipeline.pipeline.open_task", "amc.pipeline.training.open_task", "amc.batch.cluster.connected")
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(mock.patch(place, ended))
        yield
