"""The documentation's code is run as it stands."""

import re
import shlex
from pathlib import Path

from amc.cli import main

DOCS = Path(__file__).parent.parent / "docs"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_examples_of_extending(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "extending.md").read_text()
    for code in blocks(text, "python"):
        Path(re.match(r"# (\w+\.py)\n", code)[1]).write_text(code)
    commands = [shlex.split(block.replace("\\\n", " ")) for block in blocks(text, "sh")]
    assert len(commands) == 1
    assert commands[0][0] == "amc"
    assert main(commands[0][1:]) == 0
    assert "MACs" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()


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
        assert (root / link).exists(), link
    assert (root / "scripts" / "test").exists()
    for path in re.findall(r"configs/[\w.-]+\.yaml", text):
        assert (root / path).exists(), path
