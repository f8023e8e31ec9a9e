"""The whole flow in seconds, on the embedded default: first the command line, then the Python API."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import amc
from amc.cli import main
from amc.config import DataConfig, from_dict
from amc.deploy.bundle import FILES
from amc.deploy.onnx_macs import count_onnx_macs
from amc.task import evaluate, load_data, load_model, make_task

QUICK = ["--evaluations", "3", "--candidates", "2", "--finetune-epochs", "1", "--precision", "float32"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["search", "--flops", "0.5", "--size", "60%", *QUICK, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def result(bundle: Path) -> dict:
    return json.loads((bundle / "result.json").read_text())


@pytest.fixture(scope="module")
def digits():
    splits = load_data(DataConfig())
    model = load_model("resnet8", None, 1, 10, "digits")
    return make_task("digits", model, splits, torch.device("cpu"))


def test_the_bundle_is_whole_and_nothing_else_is_left(bundle: Path):
    assert sorted(p.name for p in bundle.iterdir()) == sorted(FILES)


def test_the_budget_holds_on_what_was_exported(bundle: Path, result: dict, digits):
    macs = {name: count_onnx_macs(bundle / f"{name}.onnx", digits.example) for name in ("original", "model")}
    sizes = {name: (bundle / f"{name}.onnx").stat().st_size for name in ("original", "model")}
    assert macs["model"] == result["final"]["macs"] <= 0.5 * macs["original"]
    assert sizes["model"] == result["final"]["size"] <= 0.6 * sizes["original"]
    assert macs["original"] == result["original"]["macs"] == 763_520
    assert [p["met"] for p in result["proof"]] == [True, True]


def test_the_pruned_network_still_works(result: dict):
    assert result["original"]["test"] > 0.97
    assert result["final"]["test"] > 0.9
    assert result["final"]["params"] < 0.65 * result["original"]["params"]


def test_a_bundle_scores_what_was_recorded(bundle: Path, result: dict, digits, capsys):
    model = amc.load(bundle, digits.model, digits.example)
    assert evaluate(model, digits, digits.splits.test)[1] == result["final"]["test"]
    assert main(["evaluate", str(bundle)]) == 0
    recorded = f"{100 * result['final']['test']:.2f} %"
    assert capsys.readouterr().out.count(recorded) == 2


def test_the_onnx_model_takes_any_batch_and_tells_nothing_of_the_machine(bundle: Path):
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    for batch in (1, 5):
        output = session.run(None, {"input": np.zeros((batch, 1, 8, 8), np.float32)})[0]
        assert output.shape == (batch, 10)
    for name in FILES:
        content = (bundle / name).read_bytes()
        assert str(Path(amc.__file__).parent.parent).encode() not in content, name
        assert b"site-packages" not in content, name


def test_the_journal_holds_every_evaluation_within_the_budget(bundle: Path, result: dict):
    records = [json.loads(line) for line in (bundle / "journal.jsonl").read_text().splitlines()]
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    assert len(evaluations) == result["search"]["evaluations"]
    for resource, limit in result["budget"]["limits"].items():
        assert all(e["costs"][resource] <= limit for e in evaluations)
    assert sum(r["kind"] == "test" for r in records) == 1


def test_a_finished_run_can_be_resumed_and_says_the_same(bundle: Path, result: dict, capsys):
    lines = (bundle / "journal.jsonl").read_text().splitlines()
    assert main(["search", "--resume", str(bundle)]) == 0
    again = json.loads((bundle / "result.json").read_text())
    for key in ("sites", "proof", "candidates", "pruned", "original", "final"):
        drop = {"latency_ms"}
        clean = [{k: v for k, v in r[key].items() if k not in drop} if isinstance(r[key], dict) else r[key]
                 for r in (result, again)]  # fmt: skip
        assert clean[0] == clean[1], key
    new = (bundle / "journal.jsonl").read_text().splitlines()[len(lines) :]
    assert new == []


def test_the_python_api(digits, tmp_path):
    images, labels = digits.splits.train.fetch(torch.arange(len(digits.splits.train)))
    test_images, test_labels = digits.splits.test.fetch(torch.arange(100))
    before = {k: v.clone() for k, v in digits.model.state_dict().items()}
    config = from_dict(
        {"search": {"evaluations": 2}, "finetune": {"epochs": 0.5, "candidates": 1, "precision": "float32"}}
    )
    result = amc.compress(
        digits.model,
        train=DataLoader(TensorDataset(images, labels), batch_size=32),
        test=TensorDataset(test_images, test_labels),
        budget=amc.Budget(params=0.5),
        config=config,
    )
    assert sum(p.numel() for p in result.model.parameters()) == result.summary["final"]["params"] <= 0.5 * 77_850
    assert not result.model.training
    assert len(result.evaluations) == 2
    assert all(torch.equal(v, before[k]) for k, v in digits.model.state_dict().items())
    saved = result.save(tmp_path / "kept")
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    assert amc.Policy.load(saved / "policy.json") == result.policy
    again = amc.load(saved, digits.model, digits.example)
    torch.testing.assert_close(again(test_images), result.model(test_images))


def test_a_pruned_network_is_an_ordinary_module(bundle: Path, digits):
    model = amc.load(bundle, digits.model, digits.example).train()
    images, labels = digits.splits.train.fetch(torch.arange(8))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert {m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)} != {16, 32, 64}
