"""Every code block of the tutorials is run, with few evaluations and little training."""

import json
import shlex
from pathlib import Path

import yaml
from test_docs import DOCS, blocks

from amc.cli import main
from amc.commands import COMMANDS
from amc.commands.options import configuration
from amc.commands.parser import make_parser

BRIEF = shlex.split(
    "--searcher allocate --evaluations 1 --refine 1 --candidates 1 --calibration-images 64 --search-images 50 "
    "--recalibrate off --finetune-epochs 0 --threads 1"
)


def page(name: str) -> str:
    return (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """The arguments of every amc command in the page's shell blocks."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("amc ")]


def brief(command: list[str]) -> list[str]:
    return command + (BRIEF if command[0] == "search" else [])


def write_named(text: str) -> None:
    """Write the Python blocks whose first line is the name of a file."""
    for code in blocks(text, "python"):
        first = code.partition("\n")[0]
        if first.startswith("# ") and first.endswith(".py"):
            Path(first[2:]).write_text(code)


def test_your_first_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = page("first-network")
    for command in commands(text):
        assert main(brief(command)) == 0
    assert (tmp_path / "amc-runs/resnet8-digits-1/report.html").exists()
    capsys.readouterr()
    (code,) = blocks(text, "python")
    exec(compile(code, "first-network.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("torch.Size([1, 10]) ")
    assert len(told) == 7


def test_your_own_network_and_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = page("own-network")
    write_named(text)
    inspect, search = commands(text)
    assert main(inspect) == 0
    assert "stem" in capsys.readouterr().out
    assert main(brief(search)) == 0
    (code,) = (code for code in blocks(text, "python") if not code.startswith("# "))
    shortened = code.replace('"evaluations": 20', '"evaluations": 1, "searcher": "allocate"').replace("10}", "0.5}")
    assert shortened.count("0.5}") == 1
    names: dict = {}
    exec(compile(shortened, "own-network.md", "exec"), names)
    assert names["result"].summary["final"]["size"] <= 100_000
    assert (tmp_path / "my-small-net/model.onnx").exists()


def test_a_latency_budget_on_your_device(capsys):
    """What measures for minutes is parsed here; the same script and the same table are used by test_docs."""
    text, run_elsewhere = page("latency-on-your-device"), (DOCS / "extending.md").read_text(encoding="utf-8")
    doctor, *searches = commands(text)
    assert main(doctor) == 0
    for command in searches:
        parsed = make_parser(COMMANDS)[0].parse_args(command)
        assert command[0] == "profile" or configuration(parsed).budget.latency in ("0.8", "0.6")
    for language in ("python", "csv"):
        (block,) = blocks(text, language)
        assert block in blocks(run_elsewhere, language)


def test_a_batch_for_four_devices(tmp_path, monkeypatch, capsys):
    """The whole file is checked, and every limit can be reached."""
    monkeypatch.chdir(tmp_path)
    text = page("four-devices")
    (table,), (file,) = blocks(text, "csv"), blocks(text, "yaml")
    Path("phone.csv").write_text(table)
    Path("devices.yaml").write_text(file)
    dry, batch, status = commands(text)
    assert dry == [*batch[:2], "--dry-run"]
    assert main([*dry, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in listed["runs"]] == ["resnet8--digits--" + device for device in
                                                       ("laptop", "phone", "board", "server")]  # fmt: skip
    assert status == ["status", yaml.safe_load(file)["out"]]
