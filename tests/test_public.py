"""Every public name refuses what is of the wrong type in one line, and takes what is said to be taken."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import amc
from amc.errors import AmcError

DATA = TensorDataset(torch.randn(200, 1, 8, 8), torch.arange(200) % 10)
NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
MONITOR = dict.fromkeys(("begin", "progress", "end", "say"), print)
GOOD: dict[str, dict[str, Any]] = {
    "compress": {"model": NET, "train": DATA, "test": DATA, "budget": amc.Budget(flops=0.5)},
    "make_problem": {"model": NET, "train": DATA},
    "apply": {"model": NET, "policy": "nowhere.json"},
    "load": {"folder": "nowhere"},
    "run": {"config": amc.Config().replace(budget={"flops": "0.5"})},
    "Objective": {"name": "accuracy", "loss": print, "metric": print},
}
PLACES = [
    (name, argument) for name, good in GOOD.items() for argument in inspect.signature(getattr(amc, name)).parameters
]
HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(max_size=20),
    st.binary(max_size=9),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([
        10**400, -(10**400), "9" * 5000, "a\0b", "\x1b[31m", "\ud800", b"\xff", (), set(), object(), int, nn.Linear,
        print,
        torch.zeros(2), torch.zeros(2, 2), nn.Linear(2, 2), Path("nowhere"), Path("a" * 300), amc.Budget(),
        amc.Config(),
        {"flops": []}, {"flop": 0.5}, {"flops": torch.zeros(2)}, {1: 2}, {"search": {"evaluations": []}}, "0.5", 1.5,
        SimpleNamespace(), SimpleNamespace(**MONITOR), DATA, amc.AmcError, iter([]), range(3),
    ]),
)  # fmt: skip


class Begun(Exception):
    """Everything that can be seen without work was taken to be right."""


@pytest.fixture(autouse=True)
def only_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def begin(*_: object, **__: object) -> None:
        raise Begun

    for place in (
        "amc.api.compress_task", "amc.api.open_task", "amc.api.problem_of", "amc.pipeline.pipeline.compress_task",
        "amc.pipeline.pipeline.open_task",
    ):  # fmt: skip
        monkeypatch.setattr(place, begin)
    monkeypatch.chdir(tmp_path)


def outcome(name: str, arguments: dict[str, Any]) -> str:
    """What is said; nothing where the arguments are taken. Whatever is raised but AmcError fails the test."""
    told = ""
    try:
        getattr(amc, name)(**arguments)
    except Begun:
        pass
    except AmcError as error:
        told = str(error) or "nothing"
    assert told.isprintable()
    assert len(told) <= 1000
    return told


@pytest.mark.parametrize(("name", "argument"), PLACES, ids=[".".join(place) for place in PLACES])
def test_a_wrong_value_is_one_line(name: str, argument: str) -> None:
    @given(HOSTILE)
    def holds(value: Any) -> None:
        outcome(name, {**GOOD[name], argument: value})

    holds()
    assert not list(Path().iterdir())


@given(st.sampled_from(list(inspect.signature(amc.Config).parameters)), HOSTILE)
def test_a_configuration_is_refused_in_one_line(key: str, value: Any) -> None:
    outcome("Config", {key: value})


@given(HOSTILE)
def test_files_and_what_they_hold(value: Any) -> None:
    for load in (amc.Policy.load, amc.load):
        with pytest.raises(AmcError) as caught:
            load(value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "argument", ["model", "train", "test", "search", "budget", "config", "objective", "name", "out", "monitor"]
)
@pytest.mark.parametrize("value", [5j, b"x", nn.Linear, object()], ids=lambda value: type(value).__name__)
def test_what_compress_cannot_use_is_never_taken(argument: str, value: Any) -> None:
    assert outcome("compress", {**GOOD["compress"], argument: value})


@pytest.mark.parametrize(
    "budget", [0.5, "0.5", "50%", {"flops": 0.5}, {"flops": "20M", "size": "500KB"}, amc.Budget(size=0.5)]
)
def test_a_budget_is_taken_as_people_write_it(budget: Any) -> None:
    assert not outcome("compress", {**GOOD["compress"], "budget": budget})


@pytest.mark.parametrize(
    ("argument", "value", "told"),
    [
        ("budget", {"flop": 0.5}, "budget: unknown limit 'flop'. Did you mean 'flops'?"),
        ("budget", [0.5], "budget is [0.5], but must be an amc.Budget, a dict"),
        ("budget", True, "budget is True, but must be an amc.Budget, a dict"),
        ("budget", "half", "--flops is 'half', but must be like 0.5, 50% or 20M"),
        ("budget", None, "budget is None, but must be"),
        ("config", {"search": {"evaluation": 3}}, "unknown key 'search.evaluation'. Did you mean 'evaluations'?"),
        ("config", 5, "config is 5, but must be an amc.Config or a dict"),
        ("train", "photos", "train is a str, but must be a map-style dataset"),
        ("test", {"a": 1}, "test is a dict, but must be a map-style dataset"),
        ("monitor", print, "but must have the methods begin, progress, end, say"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_the_words_of_its_argument(argument: str, value: Any, told: str) -> None:
    assert told in outcome("compress", {**GOOD["compress"], argument: value})


def test_a_configuration_may_be_dicts() -> None:
    assert not outcome("compress", {**GOOD["compress"], "config": {"search": {"evaluations": 3}}})
    assert "unknown key" in outcome("compress", {**GOOD["compress"], "config": {"serch": {}}})


def test_a_message_has_one_line_however_long_the_names_in_it_are() -> None:
    text = str(AmcError(f"begin\n\x1b[31m{'a' * 5000} end"))
    assert text.isprintable()
    assert len(text) <= 1000
    assert text.startswith("begin \\x1b[31maaa")
    assert text.endswith("aaa end")
