"""Objects out of the user's own files."""

import sys
from pathlib import Path

import pytest

from amc.errors import ConfigError
from amc.runtime.plugins import is_plugin, load_plugin


def write(folder: Path, text: str) -> str:
    path = folder / "own.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "answer"),
    [("net.py:make", True), ("/a b/net.py:make", True), ("net.py", False), ("timm:resnet18", False), ("", False)],
)
def test_is_plugin(name: str, answer: bool) -> None:
    assert is_plugin(name) is answer


def test_the_named_object_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path, "def make(x=2):\n    return x * 21\n")
    assert load_plugin(f"{file}:make")() == 42


def test_a_file_runs_once(tmp_path: Path) -> None:
    """Two names of one file share its state, and its classes are the same classes."""
    file = write(tmp_path, "class A: pass\nmade = []\ndef add():\n    made.append(A())\n    return made\n")
    load_plugin(f"{file}:add")()
    made = load_plugin(f"{file}:add")()
    assert len(made) == 2
    assert isinstance(made[0], load_plugin(f"{file}:A"))


def test_files_of_the_same_name_are_different_files(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(load_plugin(f"{write(folder, f'def make(): return {number}')}:make")())
    assert found == [1, 2]


def test_dataclasses_and_annotations_work(tmp_path: Path) -> None:
    """They look their module up in sys.modules."""
    file = write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n\n"
        "@dataclass\nclass Made:\n    x: list[int] = field(default_factory=list)\n",
    )
    assert load_plugin(f"{file}:Made")(x=[3]).x == [3]


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_own.py").write_text("answer = 42\n")
    file, before = (
        write(tmp_path, "import neighbour_of_own\ndef make(): return neighbour_of_own.answer\n"),
        list(sys.path),
    )
    assert load_plugin(f"{file}:make")() == 42
    assert sys.path == before


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_plugin(f"{tmp_path}/absent.py:make")


def test_a_missing_name_is_answered_with_a_near_one(tmp_path: Path) -> None:
    file = write(tmp_path, "def make_net(): pass\ndef other(): pass\n")
    with pytest.raises(ConfigError, match=r"nothing callable named 'make_nett'\. Did you mean 'make_net'"):
        load_plugin(f"{file}:make_nett")


def test_a_value_that_cannot_be_called(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing callable named 'x'"):
        load_plugin(f"{write(tmp_path, 'x = 3')}:x")


@pytest.mark.parametrize(
    ("text", "told"),
    [("1 / 0", "ZeroDivisionError"), ("def f(:", "SyntaxError"), ("import absent_module_", "ModuleNotFoundError")],
)
def test_a_file_that_fails_can_be_mended(tmp_path: Path, text: str, told: str) -> None:
    """The error names the cause, and nothing half-made stays behind."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"own.py fails on import: {told}"):
        load_plugin(f"{file}:make")
    write(tmp_path, "def make(): return 'mended, and of another length'")
    assert load_plugin(f"{file}:make")() == "mended, and of another length"


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    path.write_text("make")
    with pytest.raises(ConfigError, match="not a Python file"):
        load_plugin(f"{path}:make")
