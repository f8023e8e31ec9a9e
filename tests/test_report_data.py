"""What runs record for their reports: the command, layers, changed answers, parts of searchers, episodes of agents."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from amc.commands.options import add_options, configuration
from amc.config import Config, command_line, from_dict, options, public, to_dict
from amc.deploy.export import export_onnx
from amc.deploy.layers import onnx_layers
from amc.deploy.onnx_macs import count_onnx_macs
from amc.envs.toy import toy_problem
from amc.evaluation.problem import Problem
from amc.latency.layer_times import layer_times
from amc.pipeline.answers import compare_answers
from amc.reports.read import read_journal
from amc.runtime.journal import Journal
from amc.search import load_searcher
from amc.task import make_task
from amc.task.splits import InMemorySplit, Splits, record

# The command


def parsed(command: str) -> Config:
    """The configuration that a command gives."""
    words = shlex.split(command)
    assert words[:2] == ["amc", "search"]
    parser = argparse.ArgumentParser()
    parser.set_defaults(command="search")
    add_options(parser)
    return configuration(parser.parse_args(words[2:]))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"budget": {"flops": "0.5", "latency": "3ms"}, "int8": True, "seed": 7},
        {"model": {"name": "a b'c$(d).py:make"}, "data": {"mean": [-0.5, 0.1, 0.2], "std": [0.1, 0.2, 0.3]}},
        {"search": {"searcher": "tpe", "searcher_options": {"share": 0.5}, "reconstruct": False, "race": False}},
        {"finetune": {"recipe": "standard", "epochs": 2.5}},
        {"finetune": {"recipe": "standard", "label_smoothing": 0.0, "distillation": 0.25}},
    ],
)
def test_the_command_gives_the_same_configuration(values: dict[str, object]) -> None:
    config = from_dict(values)
    assert parsed(command_line(to_dict(config))) == config


def test_the_command_has_no_password() -> None:
    values = public(to_dict(from_dict({"log": "mlflow:http://me:secret@host"})))
    assert command_line(values) == "amc search --log 'mlflow:http://me:***@host'"


def test_settings_that_begin_with_a_dash_stay_values() -> None:
    (flag,) = (option.flag for option in options() if option.path == ("data", "name"))
    assert command_line({"data": {"name": "-x"}}) == f"amc search {flag}=-x"


# Layers


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.by_channel = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.by_channel(self.first(x).relu()).mean((2, 3)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    path, example = tmp_path_factory.mktemp("small") / "small.onnx", torch.randn(1, 3, 6, 6)
    export_onnx(Small().eval(), example, path)
    return path, example


def test_layers_of_a_file(small: tuple[Path, torch.Tensor]) -> None:
    layers = onnx_layers(*small)
    assert [(layer.label, layer.operator, layer.inputs, layer.outputs) for layer in layers] == [
        ("first", "Conv", 3, 8),
        ("by_channel", "Conv", 8, 8),
        ("last", "Gemm", 8, 5),
    ]
    assert [layer.params for layer in layers] == [8 * 27 + 8, 8 * 9, 45]
    assert [layer.macs for layer in layers] == [36 * 8 * 27, 16 * 8 * 9, 40]
    assert sum(layer.macs or 0 for layer in layers) == count_onnx_macs(*small)


def test_times_of_layers(small: tuple[Path, torch.Tensor]) -> None:
    times = layer_times(small[0], small[1].numpy(), onnx_layers(*small), threads=1, seconds=0.2)
    assert len(times) == 3
    assert all(ms >= 0 for ms in times)
    assert max(times) > 0


# Answers


class Fixed(nn.Module):
    """Answers with the class that the input names, shifted by a weight."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(float(shift)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot((x[:, 0] + self.shift).long() % 3, 3).float()


def test_changed_answers_are_counted() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    named = torch.tensor([[0.0], [1.0], [2.0], [1.0]])  # the original is wrong on the last one
    part = InMemorySplit(named, labels)
    splits = Splits(part, part, part, part, 3, "four samples", 1.0, record(0))
    found = compare_answers(make_task("fixed", Fixed(0), splits, torch.device("cpu")), Fixed(1))
    assert found is not None
    assert {key: found[key] for key in ("samples", "both_right", "lost", "gained", "both_wrong", "changed")} == {
        "samples": 4, "both_right": 0, "lost": 3, "gained": 1, "both_wrong": 0, "changed": 4,
    }  # fmt: skip
    assert found["confusion"] == {
        "original": [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        "final": [[0, 1, 0], [0, 0, 1], [1, 0, 1]],
    }
    assert found["pairs"][0] == {"label": 0, "original": 0, "final": 1, "count": 1}


# The search


def journaled(tmp_path: Path, searcher: str, evaluations: int) -> Path:
    """A search on the toy problem, with its journal in a file."""
    toy, path = toy_problem()[0], tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        problem = Problem(toy.space, toy.features, toy.backend, journal=journal)
        load_searcher(searcher)(problem, evaluations, 0)
    return path


def test_the_default_searcher_names_its_parts(tmp_path: Path) -> None:
    parts = [e.part for e in read_journal(journaled(tmp_path, "hybrid", 24)).evaluations]
    assert parts[0] == "uniform"
    assert "allocation" in parts
    assert "hill climbing" in parts
    assert set(parts) <= {"uniform", "allocation", "hill climbing", "neighbour", "crossing", "random", "refinement"}


def test_the_agent_records_its_episodes_once(tmp_path: Path) -> None:
    path = journaled(tmp_path, "amc", 8)
    episodes = read_journal(path).episodes
    assert [e.number for e in episodes] == list(range(1, 9))
    assert [e.sigma is None for e in episodes] == [True, True, *[False] * 6]  # two are random
    assert all(e.critic_loss is not None for e in episodes[2:])
    journaled(tmp_path, "amc", 8)  # resumed
    assert path.read_text(encoding="utf-8").count('"kind": "agent"') == 8
