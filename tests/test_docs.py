"""The documentation's code is run as it stands."""

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

from amc.cli import COMMANDS, main
from amc.commands.parser import make_parser
from amc.latency import Predictor, load_latency_model
from amc.testing import check_recovery, example_problem

DOCS = Path(__file__).parent.parent / "docs"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_examples_of_extending(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "extending.md").read_text().partition("## A recovery")[0]
    for code in blocks(text, "python"):
        Path(re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
    commands = [shlex.split(block.replace("\\\n", " ")) for block in blocks(text, "sh")]
    (command,) = commands
    assert command[0] == "amc"
    assert main(command[1:]) == 0
    assert "MACs" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()


def test_the_recovery_of_extending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "extending.md").read_text().partition("## A recovery")[2].partition("\n## ")[0]
    (code,), (command,) = blocks(text, "python"), blocks(text, "sh")
    Path("my_recovery.py").write_text(code)
    assert main(shlex.split(command.replace("\\\n", " "))[1:]) == 0
    finetune = json.loads(Path("slow/result.json").read_text())["config"]["finetune"]
    assert (finetune["recover"], finetune["recover_options"]) == ("my_recovery.py:slowly", {"lr": 0.002})
    check_recovery("my_recovery.py:slowly", {"lr": 0.002})


def test_the_preparation_of_extending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "extending.md").read_text().partition("## A preparation")[2].partition("\n## ")[0]
    (code,), (command,) = blocks(text, "python"), blocks(text, "sh")
    Path("my_preparation.py").write_text(code)
    assert main([*shlex.split(command)[1:], "--search-images", "50"]) == 0
    assert Path("mine.ranking.safetensors").exists()


def test_the_commands_of_sparsity_are_understood(capsys):
    """They are not run: every part of them is, in tests of its own."""
    for block in blocks((DOCS / "sparsity.md").read_text(), "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)[1:]
            make_parser(COMMANDS)[0].parse_args(words)


def test_the_latency_models_of_extending(tmp_path, monkeypatch, capsys):
    """The class stands its test, class and table are searched by, and the command measures a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (DOCS / "extending.md").read_text().partition("## A latency model")[2].partition("\n## ")[0]
    for code in blocks(text, "python"):
        Path(re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
    (table,) = blocks(text, "csv")
    Path("table.csv").write_text(table)
    import_module("test_my_latency").test_it_can_be_searched_by()
    by_class, by_table, by_command = (shlex.split(block) for block in blocks(text, "sh"))
    for command, told in ((by_class, "predicted by my accelerator"), (by_table, "predicted by table.csv")):
        assert main(command[1:]) == 0
        assert told in capsys.readouterr().out
    named = by_command[by_command.index("--latency-model") + 1].replace("python", sys.executable)
    model = load_latency_model(named)
    with example_problem() as problem:
        assert 0 < Predictor(model, problem).original < 1000


def test_the_searcher_of_extending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "extending.md").read_text().partition("## A searcher")[2]
    (code,), (command,) = blocks(text, "python"), blocks(text, "sh")
    Path("my_searcher.py").write_text(code)
    assert main(shlex.split(command)[1:]) == 0
    result = json.loads(Path("mine/result.json").read_text())
    assert result["search"]["searcher"] == "my_searcher.py:search"
    assert result["config"]["search"]["searcher_options"] == {"least": 0.5}


def test_the_example_of_tasks(tmp_path, monkeypatch):
    """Segmentation: half the MACs, and what was found before is still found."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks((DOCS / "tasks.md").read_text(), "python")
    names: dict = {}
    exec(compile(code, "tasks.md", "exec"), names)
    summary = names["result"].summary
    assert summary["metric"] == "IoU"
    assert summary["original"]["test"] > 0.6
    assert summary["final"]["test"] > 0.6
    assert summary["final"]["macs"] <= 0.5 * summary["original"]["macs"]


def test_links_and_commands_of_the_readme_exist():
    root = DOCS.parent
    text = (root / "README.md").read_text()
    for link in re.findall(r"\]\(([^)h][^)]*)\)", text):
        assert (root / link.partition("#")[0]).exists(), link
    assert (root / "scripts" / "test").exists()
    for path in re.findall(r"configs/[\w.-]+\.yaml", text):
        assert (root / path).exists(), path


def test_the_examples_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in blocks((DOCS / "environment.md").read_text(), "python"):
        exec(compile(code, "environment.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"layer3\.0\.conv2 +[#-]{24}  \d+ of 64", told[5])
    assert re.fullmatch(r"[\d,]+ MACs, accuracy 0\.\d+, reward -\d+\.\d+", told[6])
    assert re.fullmatch(r"\(\d+(, \d+){5}\) accuracy 0\.\d+, [\d,]+ parameters", told[7])
