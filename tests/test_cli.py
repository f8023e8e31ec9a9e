"""A user's mistake is one line that names it and the way out, exit code 2, and nothing is written."""

import contextlib
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from amc.cli import main
from amc.config import options
from amc.deploy.export import check_parity
from amc.errors import Interrupted
from amc.search import searchers

NOTHING_TO_PRUNE = """
import torch
def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def complaint(capsys, *arguments: str) -> str:
    """The one line that the command leaves on stderr."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("amc: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    return lines[0]


def test_ctrl_c_tells_the_command_that_goes_on_on_the_same_cluster(capsys, monkeypatch) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("amc search --resume here")

    monkeypatch.setattr("amc.pipeline.pipeline.run", stopped)
    monkeypatch.setattr("amc.batch.cluster.connected", lambda _: contextlib.nullcontext())
    assert main(["search", "--flops", "0.5", "--ray", "a:1", "--workers", "4"]) == 130
    assert capsys.readouterr().err.endswith("Go on with: amc search --resume here --ray a:1 --workers 4\n")
    assert main(["search", "--flops", "0.5"]) == 130
    assert capsys.readouterr().err.endswith("Go on with: amc search --resume here\n")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serch"], "unknown command 'serch'. Did you mean 'search'?"),
        (["search"], "no budget is given"),
        (["search", "--flop", "0.5"], "unknown option --flop. Did you mean '--flops'?"),
        (["search", "--flops", "1.5.2"], "--flops is '1.5.2', but must be like 0.5, 50% or 20M"),
        (["search", "--flops", "0"], "above 0"),
        (["search", "--flops", "150%"], "at most 1"),
        (["search", "--flops", "20KB"], "but must be like"),
        (["search", "--flops", "0.5", "--searcher", "tpee"], "Did you mean 'tpe'?"),
        (["search", "--flops", "0.5", "--criterion", "obx"], "Did you mean 'obs'?"),
        (["search", "--flops", "0.5", "--reward", "eror"], "Did you mean 'error'?"),
        (["search", "--flops", "0.5", "--model", "resnet21"], "Did you mean 'resnet20'?"),
        (["search", "--flops", "0.5", "--model", "resnet20"], "needs trained weights"),
        (["search", "--flops", "0.5", "--data", "digit"], "Did you mean 'digits'?"),
        (["search", "--flops", "0.5", "--data", "imagefolder:nowhere"], "no images in nowhere: it does not exist"),
        (["search", "--flops", "0.5", "--data", "cifar10"], "needs --data-root"),
        (["search", "--flops", "0.5", "--data", "fashion-mnist", "--data-root", "."], "dataset-fashion-mnist"),
        (["search", "--flops", "0.5", "--weights", "nowhere.safetensors"], "there is no weights file"),
        (["search", "--flops", "0.5", "--evaluations", "0"], "at least 1"),
        (["search", "--flops", "0.5", "--evaluations", "many"], "must be a whole number"),
        (["search", "--flops", "0.5", "--device", "cuda:77"], "--device cuda:77 is not available here"),
        (["search", "--flops", "0.5", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["search", "--flops", "0.001"], "the least possible is"),
        (["search", "--size", "1KB"], "the least possible is"),
        (["search", "--resume", "nowhere"], "there is no folder nowhere"),
        (["search", "--resume", "nowhere", "--flops", "0.5"], "give no other options"),
        (["evaluate", "nowhere"], "it is not a bundle"),
        (["train", "--out", "weights.pt"], "must be a .safetensors file"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes(capsys, arguments: list[str], told: str):
    assert told in complaint(capsys, *arguments)
    assert not list(Path().glob("*.safetensors"))
    assert not Path("result.json").exists()


def test_a_model_with_nothing_to_prune(capsys):
    Path("net.py").write_text(NOTHING_TO_PRUNE)
    assert "there is nothing to prune" in complaint(capsys, "search", "--flops", "0.5", "--model", "net.py:make")


def test_a_model_of_the_wrong_shape(capsys):
    Path("net.py").write_text(NOTHING_TO_PRUNE.replace("64", "63"))
    message = complaint(capsys, "search", "--flops", "0.5", "--model", "net.py:make")
    assert "does not take these inputs of shape [1, 8, 8]" in message


def test_weights_that_hold_nan(capsys):
    from amc.task.models import build_model

    model = build_model("resnet8", False, 1, 10)
    nn.init.constant_(model.fc.weight, torch.nan)
    torch.save(model.state_dict(), "nan.pt")
    assert "NaN or infinity in 'fc.weight'" in complaint(capsys, "search", "--flops", "0.5", "--weights", "nan.pt")


def test_a_folder_that_holds_a_run_is_not_touched(capsys):
    Path("run").mkdir()
    for name in ("journal.jsonl", "config.yaml"):
        Path("run", name).write_text("")
    assert "already holds a run" in complaint(capsys, "search", "--flops", "0.5", "--out", "run")
    assert {p.name: p.read_text() for p in Path("run").iterdir()} == {"journal.jsonl": "", "config.yaml": ""}


def test_resuming_with_another_network_is_refused(capsys):
    arguments = ["--flops", "0.5", "--evaluations", "1", "--finetune-epochs", "0", "--out", "run"]
    assert main(["search", *arguments]) == 0
    capsys.readouterr()
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("weights: null", "weights: random"))
    assert "was started with another network" in complaint(capsys, "search", "--resume", "run")


def test_help_explains_every_option(capsys):
    """How a training prepares for pruning is told by ``amc train``, all else by ``amc search``."""
    text = {}
    for command in ("search", "train"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help-all"])
        assert stopped.value.code == 0
        text[command] = " ".join(capsys.readouterr().out.split())
    for option in options():
        told = text["train" if option.path[0] == "train" else "search"]
        assert option.flag in told
        assert " ".join(option.help.replace("%%", "%").split()[:4]) in told


def test_inspect_lists_sites_and_refusals(capsys):
    assert main(["inspect"]) == 0
    out = capsys.readouterr().out
    assert "0.76 M MACs" in out
    assert "layer1.0.conv1: layer1.0.conv1, layer1.0.bn1 → layer1.0.conv2" in out
    assert "not prunable: fc (10 channels): it is the network's output" in out


def test_what_can_be_named_is_listed(capsys):
    assert main(["list", "searchers"]) == 0
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.splitlines() if line[0] != " "} == set(searchers())
    assert "tournament=4: random policies of which the best becomes a parent, at least 1" in out
    assert "Frantar & Alistarh 2022, arXiv:2201.13096" in out
    for kind, name in (
        ("rewards", "error-flops"),
        ("data", "cifar100"),
        ("criteria", "obs"),
        ("operators", "channels"),
    ):
        assert main(["list", kind]) == 0
        assert name in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert complaint(capsys, "list", "searcher") == "amc: unknown kind 'searcher'. Did you mean 'searchers'?"


def test_an_old_name_is_told_once_and_works(capsys):
    assert main(["searchers"]) == 0
    captured = capsys.readouterr()
    assert "hybrid" in captured.out
    assert captured.err == "amc: warning: amc searchers is now called amc list searchers\n"
    assert "at least 0 and at most 1, or auto" in complaint(capsys, "inspect", "--min-keep", "2")


def test_a_network_that_the_runtime_computes_otherwise_is_refused_before_the_search(capsys, monkeypatch):
    monkeypatch.setattr("amc.pipeline.original.check_parity", partial(check_parity, limit=-1.0))
    said = complaint(capsys, "search", "--flops", "0.5", "--out", "run")
    assert "on ONNX Runtime the network's outputs differ" in said
    assert not Path("run/original.onnx").exists()
