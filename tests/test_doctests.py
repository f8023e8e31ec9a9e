"""The examples in docstrings are run as they stand."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("amc", "envs", "reports", "search")


def with_examples():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            inside = path.relative_to(ROOT).with_suffix("").parts
            if any((ROOT / package / part).is_symlink() for part in inside[1:2]):
                continue
            if ">>> " in path.read_text():
                parts = inside[:-1] if inside[-1] == "__init__" else inside
                yield ".".join(parts if package == "amc" else ("amc", *parts))


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_give_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0
