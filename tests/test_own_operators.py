"""An operator of the user's own: from a file or a package, through the command line, up to the delivered bundle."""

import json
import subprocess
import sys

import pytest
import torch

import amc
from amc.cli import main
from amc.config import from_run
from amc.errors import ConfigError, PolicyError
from amc.operators import load_operators
from amc.operators.registry import foreign, operators
from amc.operators.toy import CoarseWeights, coarse
from amc.pipeline.trust import code_named
from amc.space.sites import frozen_setting

QUICK = ["--evaluations", "4", "--finetune-epochs", "0.3", "--calibration-images", "64",
         "--search-images", "50", "--candidates", "2", "--trial-share", "0.5", "--precision", "float32",
         "--recalibrate", "off", "--threads", "1"]  # fmt: skip


FILE = """
from amc.operators.toy import CoarseWeights as operator

def search(problem, evaluations, seed):
    # uniform widths, and every coarse layer at another setting: nothing that is limited would make them so
    space = problem.space
    uniform = space.positions(space.fit([1.0] * len(space.sites)))
    for first in range(evaluations):
        places = [(first + site) % 3 if space.names[site].startswith("coarse:") else place
                  for site, place in enumerate(uniform)]
        problem.evaluate(space.choice(places))
"""


@pytest.fixture
def named(tmp_path):
    (tmp_path / "my.py").write_text(FILE)
    return f"channels,branches,{tmp_path}/my.py:operator"


def searched(named):
    return [*QUICK, "--searcher", named.rpartition(",")[2].replace(":operator", ":search")]


def test_it_is_searched_trained_within_delivered_and_loaded(tmp_path, named):
    run = tmp_path / "run"
    assert main(["search", "--params", "0.6", "--operators", named, "--out", str(run), *searched(named)]) == 0
    policy = json.loads((run / "policy.json").read_text())["sites"]
    assert {entry["kind"] for entry in policy.values()} >= {"channels", "coarse"}
    result = json.loads((run / "result.json").read_text())
    assert result["config"]["search"]["operators"] == ["channels", "branches", "my.py:operator"]
    assert result["final"]["macs"] == result["macs"]["amc"]  # what it saves of them is not in the file
    shown = {site["name"]: site.get("setting") for site in result["sites"]}
    assert shown["coarse:conv1"] == policy["coarse:conv1"]
    original = amc.run(from_run(run), resume=run, trust=True).model
    loaded = amc.load(run)
    images = torch.randn(3, 1, 8, 8)
    assert torch.allclose(loaded(images), original(images), atol=1e-5)
    kept = [name for name, entry in policy.items() if entry["kind"] == "coarse"]
    assert {str(policy[name]["setting"]) for name in kept} == {"sign", "['round', 4]", "0.5"}
    for name in kept:
        weight = original.get_submodule(name.removeprefix("coarse:")).weight.detach()
        setting = frozen_setting(policy[name]["setting"])
        assert torch.allclose(coarse(weight, setting), weight, atol=1e-6), f"{name} was not held to {setting}"


def test_a_bundle_of_it_is_loaded_with_the_operator(tmp_path, named):
    run = tmp_path / "run"
    assert main(["search", "--params", "0.6", "--operators", named, "--out", str(run), *searched(named)]) == 0
    from amc.pipeline.opening import open_task

    task = open_task(from_run(run))
    with pytest.raises(PolicyError, match="unknown kind of compression 'coarse'"):
        amc.load(run, task.model, task.example)
    model = amc.load(run, task.model, task.example, operators=[CoarseWeights()])
    assert torch.allclose(model(task.example), amc.load(run)(task.example), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--flops", "0.5"], "--flops cannot be limited with the operator coarse: model.onnx does not show the MACs"),
        (["--latency", "0.5"], "--latency supports channels and branches only"),
        (
            ["--params", "0.5", "--reward", "error-latency"],
            "--reward error-latency supports channels and branches only",
        ),
        (
            ["--params", "0.5", "--criterion-scope", "global", "--criterion", "l1"],
            "--criterion-scope global supports channels and branches only",
        ),
    ],
)
def test_what_cannot_be_done_with_it_is_refused_before_the_search(tmp_path, named, capsys, words, told):
    run = tmp_path / "run"
    assert main(["search", *words, "--operators", named, "--out", str(run), *QUICK]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in last
    assert not run.exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["branches"], "adds settings to the sites of channels: name channels first"),
        (["channels", "channels"], "which is named twice"),
        (["chanels"], "Did you mean 'channels'"),
        ([], "no operator is named"),
    ],
)
def test_operators_that_do_not_go_together_are_refused(names, told):
    with pytest.raises(ConfigError, match=told):
        load_operators(names)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def operator(): return 3", "is a int, but must be a CompressionOperator"),
        ("def operator(): return 1 / 0", "fails: ZeroDivisionError"),
        ("from amc.operators import Channels as operator", "of the kind 'channels', which is built in"),
    ],
)
def test_what_is_no_operator_is_refused(tmp_path, body, told):
    (tmp_path / "my.py").write_text(f"{body}\n")
    with pytest.raises(ConfigError, match=told):
        load_operators([f"{tmp_path}/my.py:operator"])


def test_branches_that_are_limited_must_be_named(tmp_path, capsys):
    assert main(["search", "--branches", "0.5", "--operators", "channels", "--out", str(tmp_path / "run")]) == 2
    assert "add branches to --operators" in capsys.readouterr().err


def test_a_file_that_is_named_is_code_of_a_stranger(named):
    config = amc.Config().replace(search=amc.Config().search.replace(operators=tuple(named.split(","))))
    assert code_named(config) == [named.rpartition(",")[2]]


def test_an_installed_package_brings_an_operator(tmp_path):
    """Its name is its kind, by which policies are read without naming it."""
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (tmp_path / "own_operator.py").write_text("from amc.operators.toy import CoarseWeights\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[amc.operators]\ncoarse = own_operator:CoarseWeights\nfine = own_operator:CoarseWeights\n"
    )
    code = (
        "from amc.operators import load_operators, operator_of; from amc.cli import main\n"
        "print([o.kind for o in load_operators(['channels', 'coarse'])], operator_of('coarse').kind)\n"
        "main(['list', 'operators'])\n"
        "try: load_operators(['fine'])\n"
        "except Exception as error: print(error)\n"
    )
    path = {"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "['channels', 'coarse'] coarse"
    assert any(line.startswith("coarse") for line in lines)
    assert "its name must be its kind" in lines[-1]


def test_own_operators_come_first_in_the_list():
    assert list(operators())[:2] == ["channels", "branches"]
    assert foreign([CoarseWeights()]) == ["coarse"]
