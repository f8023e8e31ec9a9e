"""Schedules: the phases that lead to a policy, pruning what is pruned already, and resuming at every point."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Attention, assert_same, lively, output, pruned, transformer

from amc.errors import ConfigError
from amc.graph.build import build_graph
from amc.graph.narrowing import narrowed
from amc.pipeline import recovering
from amc.space.sites import PolicyGrid, numeric_sites
from amc.train import Phase, check_schedule, phases

GRID = PolicyGrid(numeric_sites("abc", [(4, 8, 12, 16), (0, 8, 16), (8,)]))


def test_one_shot_is_one_phase():
    assert phases("one-shot", {}, GRID, (4, 0, 8), 2.5) == [Phase((4, 0, 8), 2.5)]


@given(st.tuples(st.integers(0, 3), st.integers(0, 2), st.just(0)), st.integers(1, 9))
def test_iterative_goes_down_to_the_policy_in_equal_times(places, steps):
    chosen = GRID.choice(places)
    found = phases("iterative", {"steps": steps}, GRID, chosen, 6.0)
    assert found[-1].choice == chosen
    assert len(found) <= steps
    assert sum(phase.epochs for phase in found) == pytest.approx(6.0)
    path = [GRID.positions(phase.choice) for phase in found]
    assert all((later <= earlier).all() for earlier, later in pairwise(path))


@given(
    st.sampled_from(["gradual", "layerwise"]), st.tuples(st.integers(0, 3), st.integers(0, 2), st.just(0)),
    st.integers(1, 9),
)  # fmt: skip
def test_every_schedule_goes_down_to_the_policy_in_equal_times(name, places, count):
    chosen = GRID.choice(places)
    found = phases(name, {"steps" if name == "gradual" else "sites": count}, GRID, chosen, 6.0)
    assert found[-1].choice == chosen
    assert [phase.epochs for phase in found] == pytest.approx([6.0 / len(found)] * len(found))
    path = [GRID.positions(phase.choice) for phase in found]
    assert all((later <= earlier).all() and (later < earlier).any() for earlier, later in pairwise(path))


def test_gradual_is_the_papers_polynomial():
    """From setting 40 to setting 8 in four phases: 8 + 32 (1 − t/4)³."""
    grid = PolicyGrid(numeric_sites("a", [tuple(range(1, 42))]))
    found = phases("gradual", {"steps": 4}, grid, (9,), 4.0)
    assert [int(grid.positions(phase.choice)[0]) for phase in found] == [22, 12, 8]  # 21.5, 12, 8.5 and 8


def test_layerwise_prunes_one_site_in_a_phase():
    wanted = [(4, 16, 8), (4, 0, 8)]
    assert [p.choice for p in phases("layerwise", {}, GRID, (4, 0, 8), 1.0)] == wanted
    backward = [p.choice for p in phases("layerwise", {"order": "backward"}, GRID, (4, 0, 8), 1.0)]
    assert backward == [(16, 0, 8), (4, 0, 8)]
    assert [p.choice for p in phases("layerwise", {}, GRID, GRID.full, 1.0)] == [GRID.full]


def test_without_training_there_is_one_phase():
    assert phases("iterative", {}, GRID, (4, 0, 8), 0.0) == [Phase((4, 0, 8), 0.0)]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return []", "does not end at the chosen policy"),
        ("return [Phase(grid.full, epochs)]", "does not end at the chosen policy"),
        ("return [Phase(grid.smallest, 1.0), Phase(chosen, 1.0)]", "lets a site grow again"),
        ("return 1 / 0", "fails: ZeroDivisionError"),
    ],
)
def test_a_schedule_of_the_users_own_is_checked(tmp_path, body, told):
    (tmp_path / "own.py").write_text(f"from amc.train import Phase\ndef mine(grid, chosen, epochs):\n    {body}\n")
    with pytest.raises(ConfigError, match=told):
        phases(f"{tmp_path}/own.py:mine", {}, GRID, (12, 8, 8), 2.0)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="steps is 0"):
        check_schedule("iterative", {"steps": 0})
    with pytest.raises(ConfigError, match="Did you mean 'iterative'"):
        check_schedule("iterativ", {})


@pytest.mark.parametrize("case", ["resnet8", "transformer"])
def test_pruning_twice_is_pruning_once(case, resnet8):
    """Of random policies, the second keeping some of what the first keeps."""
    torch.manual_seed(0)
    if case == "resnet8":
        graph, model = resnet8
        model, example = lively(model), torch.randn(2, 1, 8, 8)
    else:
        model, example = lively(transformer(Attention(12, 3, False))), torch.randn(2, 3, 8, 8)
        graph = build_graph(model, example[:1])
    rng = np.random.default_rng(0)
    for _ in range(3):
        had = [np.sort(rng.choice(s.channels, rng.integers(2, s.channels + 1), replace=False)) for s in graph.sites]
        kept = [np.sort(rng.choice(h, rng.integers(1, len(h) + 1), replace=False)) for h in had]
        first = pruned(model, graph, had)
        twice, once = narrowed(first, graph.layers, had, kept), pruned(model, graph, kept)
        assert {k: v.shape for k, v in twice.state_dict().items()} == {k: v.shape for k, v in once.state_dict().items()}
        assert_same(output(twice, example), output(once, example))
        assert first.state_dict().keys() == model.state_dict().keys()


def test_a_channel_that_is_gone_cannot_be_kept(resnet8):
    graph, model = resnet8
    had = [np.arange(2) for _ in graph.sites]
    with pytest.raises(ValueError, match="channels that the network no longer has"):
        narrowed(pruned(model, graph, had), graph.layers, had, [np.array([0, 5]) for _ in graph.sites])


def test_an_iterative_run_resumes_at_every_point(tmp_path, monkeypatch):
    """Killed in its first, second and third phase, it ends with the same weights, within the budget."""
    from amc.cli import main

    words = ["search", "--flops", "0.5", "--searcher", "uniform", "--evaluations", "1", "--finetune-epochs", "0.6",
             "--schedule", "iterative", "--schedule-option", "steps=3", "--precision", "float32", "--recalibrate",
             "off", "--candidates", "1", "--calibration-images", "64", "--search-images", "50",
             "--threads", "1"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    real, seen = recovering.train, []

    class Killed(BaseException):
        pass

    def killed(model, task, plan, teacher, checkpoint, *others):
        seen.append(checkpoint.name)
        if len(seen) in (1, 3, 6):  # before the first phase, the second, the third: what is done is not done again
            raise Killed
        return real(model, task, plan, teacher, checkpoint, *others)

    monkeypatch.setattr(recovering, "train", killed)
    folder = tmp_path / "killed"
    for attempt in range(3):
        with pytest.raises(Killed):
            main([*words, "--out", str(folder)] if attempt == 0 else ["search", "--resume", str(folder)])
    assert main(["search", "--resume", str(folder)]) == 0
    one, two, three = "checkpoint.1.pt", "checkpoint.2.pt", "checkpoint.pt"
    assert seen == [one, one, two, one, two, three, one, two, three]
    result = json.loads((folder / "result.json").read_text())
    assert all(p["met"] for p in result["proof"])
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not list(Path(folder).glob("checkpoint*"))
