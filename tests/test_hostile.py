"""Whatever a stranger writes into options, files and names is met by one line, and nothing is left over."""

import io
import logging
import re
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch.utils.data import TensorDataset

import amc
from amc.batch.screen import status_table
from amc.batch.status import Status
from amc.cli import main
from amc.commands.show import table, terminal
from amc.config import from_dict, from_run, masked, public
from amc.errors import AmcError, ConfigError
from amc.runtime.display import Display
from amc.space.budget import parse_limit

HUGE = "9" * 5000
BATCHES = {
    "out: 5": "out is 5, but must be a text",
    "out: [a]": "out is ['a'], but must be a text",
    "out: 2020-01-01": "out is datetime.date(2020, 1, 1), but must be a text",
    'out: "a\\0b"': "out is 'a\\x00b', but must be a text",
    "common: {budget: 5}": "common: budget is 5, but must hold keys and values",
    "common: {model: 5}": "common: model is 5, but must hold keys and values",
    "common: 5": "common is 5, but must hold keys and values",
    "budgets: [5]": "budgets.5 is 5, but must hold keys and values",
    "budgets: {half: [1]}": "budgets.half is [1], but must hold keys and values",
    f"seeds: [{HUGE}]": "Exceeds the limit",
    f"seeds: [{HUGE[:4000]}]": "is longer than 100 characters",
    f"budgets: {{{'b' * 250}: {{flops: 0.5}}}}": "is longer than 100 characters",
    "retries: -1": "retries is -1, but must be at least 0",
    "retries: 1e300": "but must be at least 0 and at most 1000",
    '"\\e[31m": 1': "unknown key '\\x1b[31m'",
    'overrides: [{match: {model: resnet8}, set: {"\\e[2J": 1}}]': "unknown key '\\x1b[2J'",
    'exclude: [{"\\e[2J": 1}]': "unknown key 'exclude.\\x1b[2J'",
    "devices: {a: {resources: {GPU: -1}}}": "devices.a.resources.GPU is -1, but must be above 0",
    "devices: {a: 5}": "devices.a is 5, but must hold keys and values",
    "budgets: &a [*a]": "is not YAML",
    "common: {search: {storage: 'postgresql://u:hunter2@h/d', evaluations: 0}}": "evaluations is 0",
}


def one_line(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert len(lines[0]) < 600
    return lines[0]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "told"), BATCHES.items(), ids=[text[:40] for text in BATCHES])
def test_batch_files(capsys, here: Path, text: str, told: str) -> None:
    head = "models: [resnet8]\n" + ("" if "budgets" in text else "budgets: [{flops: 0.5}]\n")
    Path("b.yaml").write_text(head + text)
    assert told in (line := one_line(capsys, "batch", "b.yaml"))
    assert "hunter2" not in line
    assert [path.name for path in here.iterdir()] == ["b.yaml"]


SEARCH = ("search", "--flops", "0.5")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["search", "--resume", "-"], "there is no folder -"),
        (["search", "--resume", ""], "an argument is '': leave it out."),
        (["search", "--resume", "a\0b"], "an argument is 'a\\x00b': it must not hold NUL."),
        (["status", ""], "an argument is ''"),
        (["inspect", ""], "an argument is ''"),
        ([*SEARCH, "--out", ""], "an argument is ''"),
        ([*SEARCH, "--split-seed", "-1"], "--split-seed is -1, but must be at least 0"),
        ([*SEARCH, "--split-seed", HUGE], "--split-seed is '999"),
        ([*SEARCH, "--threads", "2147483648"], "--threads is 2147483648, but must be at least 1"),
        ([*SEARCH, "--lr", "1e300"], "--lr is 1e+300, but must be above 0 and at most 1000."),
        ([*SEARCH, "--std", "0"], "--std is 0.0, but must be above 0."),
        ([*SEARCH, "--ray", "auto", "--workers", "-"], "--workers is '-', but must be a whole number."),
        ([*SEARCH, "--model", "\x1b[31m"], "unknown model '\\x1b[31m'"),
        ([*SEARCH, "--\x1b[31m"], "unknown option --\\x1b[31m"),
        (["\x1b[31m"], "unknown command '\\x1b[31m'"),
        (["search", "--flops", "1" * 100_000], "must be a text of 1 to 4096 characters"),
        (["search", "--flops", "1" * 4000], "but must be like 0.5, 50% or 20M"),
        (["search", "--flops", "٣"], "but must be like 0.5, 50% or 20M"),
        (["measure", "x.onnx", "--threads", "-"], "--threads is '-', but must be a whole number."),
        (["measure", "x.onnx", "--threads", "2147483648"], "--threads is 2147483648, but must be at least 1"),
        (["measure", "x.onnx", "--seconds", "nan"], "--seconds is 'nan', but must be a number."),
        (["measure", "x.onnx", "--precision", "0"], "--precision is 0, but must be above 0 and at most 1."),
        (["batch", "b.yaml", "--workers", HUGE], "cannot read b.yaml"),
        (["list", "\x1b[31m"], "unknown kind '\\x1b[31m'"),
    ],
    ids=lambda value: " ".join(value)[:40].encode("unicode_escape").decode() if isinstance(value, list) else "",
)  # fmt: skip
def test_the_command_line(capsys, here: Path, arguments: list[str], told: str) -> None:
    assert told in one_line(capsys, *arguments)
    assert list(here.iterdir()) == []


def test_amounts_are_read_in_no_time() -> None:
    with pytest.raises(AmcError):
        parse_limit("flops", "1" * 10_000_000 + "!", 1.0)
    with pytest.raises(AmcError):
        parse_limit("flops", " " * 10_000_000 + "!", 1.0)


# Passwords


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:hunter2@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u:hun/ter2@x@h/d", "postgresql://u:***@h/d"),
        ("postgresql://:hunter2@h/d", "postgresql://:***@h/d"),
        ("mysql+pymysql://u@h/d?password=hunter2", "mysql+pymysql://u@h/d?password=***"),
        ("http://h/?a=1&api_key=hunter2&b=2", "http://h/?a=1&api_key=***&b=2"),
        ("mlflow:https://u:hunter2@h", "mlflow:https://u:***@h"),
        ("cannot reach redis://u:hunter2@h now", "cannot reach redis://u:***@h now"),
        ("postgresql://u:$WORD@h/d", "postgresql://u:$WORD@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
        ("study.log", "study.log"),
    ],
)
def test_passwords_are_masked(address: str, shown: str) -> None:
    assert masked(address) == shown
    assert public({"search": {"storage": address}, "log": address}) == {"search": {"storage": shown}, "log": shown}


def test_a_bad_storage_is_told_without_its_password(capsys) -> None:
    for address in ("nonsense://u:hunter2@h/d", "postgresql://u:hunter2@h:99999999/d", "mysql://h/d?password=hunter2"):
        line = one_line(capsys, *SEARCH, "--searcher", "tpe", "--storage", address)
        assert "--storage" in line
        assert "hunter2" not in line


@pytest.mark.slow
def test_a_password_is_in_no_file_and_comes_from_the_environment_on_resume(capsys, here: Path, monkeypatch) -> None:
    import contextlib

    monkeypatch.setattr("amc.pipeline.checks.check_log", lambda log: None)
    monkeypatch.setattr("amc.pipeline.pipeline.tracked", lambda *_: contextlib.nullcontext())
    address = "mlflow:http://u:hunter2@h"
    quick = ["--searcher", "uniform", "--evaluations", "1", "--no-finetune", "--recalibrate", "off", "--out", "run"]
    assert main([*SEARCH, *quick, "--log", address]) == 0
    for path in Path("run").iterdir():
        assert b"hunter2" not in path.read_bytes(), path
    assert yaml.safe_load(Path("run/config.yaml").read_text())["log"] == "mlflow:http://u:***@h"
    capsys.readouterr()
    assert "put the whole address into $AMC_LOG" in one_line(capsys, "search", "--resume", "run", "--trust")
    monkeypatch.setenv("AMC_LOG", "mlflow:http://other:hunter2@h")
    assert "$AMC_LOG is mlflow:http://other:***@h" in one_line(capsys, "search", "--resume", "run", "--trust")
    monkeypatch.setenv("AMC_LOG", address)
    assert from_run(Path("run"), passwords=True).log == address
    assert main(["search", "--resume", "run", "--trust"]) == 0


# Names on the terminal

NAMES = [
    "[/x]",
    "[red]name[/red]",
    "\x1b[31mname",
    "\x1b]0;title\x07",
    ":smile:",
    "a\u202eb",
    "[link=http://x]y[/link]",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, monkeypatch) -> None:
    plain = name.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e")

    def shown(*printed: object) -> str:
        file = io.StringIO()
        console = terminal()
        console.file, console.width = file, 200
        for each in printed:
            console.print(each)
        return file.getvalue()

    run = Status(name, "running", stage=name, share=0.5, note=name)
    failed = Status(name, "failed", note=name)
    for text in (shown(name), shown(table(["a", "b"], [[name, name]])), shown(status_table([run, failed]))):
        assert plain in text
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text) is None


@pytest.mark.parametrize("terminal_there", [True, False])
def test_a_run_shows_names_as_they_are(terminal_there: bool) -> None:
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=terminal_there, color_system=None, width=200)) as display:
        display.begin("[/x]")
        display.progress(0.5, "[/y] \x1b]0;title\x07")
        display.end(1.0)
        display.say("[/z] \x1b]0;title\x07")
    assert "[/x]" in file.getvalue()
    assert "[/z] \\x1b]0;title\\x07" in file.getvalue()
    assert "\x1b]0;" not in file.getvalue()


# Python


def test_every_public_name_is_there_twice_and_can_be_called() -> None:
    """No module may bear the name of a public function: importing it would put the module in the function's place."""
    wrong = {"Objective": ("accuracy", 5, 6), "Policy": None, "Result": None, "Budget": None, "AmcError": None}
    for name in amc.__all__:
        first, second = getattr(amc, name), getattr(amc, name)
        assert first is second
        if name.startswith("__"):
            continue
        assert callable(first)
        if wrong.get(name, ()) is not None:
            with pytest.raises((AmcError, TypeError)):
                first(*wrong.get(name, (object(),)))


MODEL = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
DATA = TensorDataset(torch.randn(40, 1, 8, 8), torch.randint(0, 10, (40,)))
GOOD = {"model": MODEL, "train": DATA, "test": DATA, "budget": amc.Budget(flops=0.5)}


@pytest.mark.parametrize(
    "call",
    [
        lambda: amc.run(5),
        lambda: amc.run({"budget": {"flops": 0.5}}),
        lambda: amc.run(None),
        lambda: amc.run(amc.Config(), resume=5),
        lambda: amc.run(amc.Config(), trust="yes"),
        lambda: amc.load(5),
        lambda: amc.load(None),
        lambda: amc.load("nowhere", model="resnet8"),
        lambda: amc.apply(MODEL, 5),
        lambda: amc.apply("resnet8", "policy.json"),
        lambda: amc.Policy.load(5),
        lambda: amc.Policy.load("a\0b"),
        lambda: amc.Objective("accuracy", 5, 6),
        lambda: amc.Config(seed="x"),
        lambda: amc.Config(sed=3),
        lambda: amc.Config(search=5),
        *(
            lambda name=name, value=value: amc.compress(**{**GOOD, name: value})
            for name, value in [
                ("model", "resnet8"), ("model", torch.nn.Conv2d), ("train", 5), ("test", None), ("search", 5),
                ("budget", object()),
                ("budget", amc.Budget(flops=object())), ("budget", amc.Budget(flops=[1])), ("budget", amc.Budget()),
                ("config", {"sed": 1}), ("objective", "accuracy"), ("name", 5), ("out", 5), ("out", "a\0b"),
            ]
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(call, here: Path) -> None:
    with pytest.raises(AmcError) as caught:
        call()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_compress_prints_nothing_but_logs(capfd, caplog) -> None:
    with caplog.at_level(logging.INFO, "amc"):
        config = from_dict({"search": {"evaluations": 1, "searcher": "uniform"}, "finetune": {"epochs": 0}})
        amc.compress(**GOOD, config=config)
    assert "search: done in" in caplog.text
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_configuration_error_is_one_of_amc() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'search\.evaluation'"):
        from_dict({"search": {"evaluation": 1}})
