"""The 8-bit model: which setting is taken, what stays in float, and what a run tells of it."""

import json

import numpy as np
import onnx
import pytest
import torch
from networks import built

from amc.cli import main
from amc.deploy.export import export_onnx
from amc.errors import ExportError
from amc.latency import Runner, onnx_metric
from amc.latency.instruments import Instruments
from amc.latency.int8 import Setting, TriedSetting, choose, fastest, in_float, quantise, settings
from amc.pipeline.summary import int8_notes
from amc.task import load_data
from amc.task.metrics import CLASSIFICATION

U8S8 = Setting(False, False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """resnet8's ONNX file."""
    network, example, _, _ = built("resnet8-digits")
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    export_onnx(network, example, path)
    return path


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [{"input": rng.standard_normal((8, 1, 8, 8), dtype=np.float32)} for _ in range(4)]


@pytest.mark.parametrize("setting", settings(frozenset({"avx2"})), ids=lambda s: s.name)
def test_a_quantised_model_computes_nearly_the_same(model, batches, tmp_path, setting):
    quantise(model, tmp_path / "q.onnx", setting, batches)
    found, wanted = Runner(tmp_path / "q.onnx")(batches[0]), Runner(model)(batches[0])
    assert 0 < np.abs(found - wanted).max() < 0.2 * np.abs(wanted).max()
    assert (tmp_path / "q.onnx").stat().st_size < 0.5 * model.stat().st_size
    onnx.checker.check_model(onnx.load(tmp_path / "q.onnx"))


def test_the_file_has_the_types_of_its_setting(model, batches, tmp_path):
    for setting in (Setting(False, False), Setting(False, True), Setting(True, True)):
        quantise(model, tmp_path / "q.onnx", setting, batches)
        proto = onnx.load(tmp_path / "q.onnx")
        tensors = {t.name: t for t in proto.graph.initializer}
        pairs = [n for n in proto.graph.node if n.op_type == "QuantizeLinear"]
        types = {tensors[n.input[2]].data_type for n in pairs}
        assert types == {onnx.TensorProto.INT8 if setting.signed else onnx.TensorProto.UINT8}
        scales = [tensors[n.input[1]].dims for n in proto.graph.node
                  if n.op_type == "DequantizeLinear" and n.input[0].startswith("conv1.weight_quantized")]  # fmt: skip
        assert [list(dims) for dims in scales] == ([[16]] if setting.per_channel else [[]])


def test_operators_that_stay_in_float_are_found(model, batches, tmp_path):
    left, layers = in_float(model)
    assert len(left) == layers == 10  # nine convolutions and the classifier
    quantise(model, tmp_path / "q.onnx", U8S8, batches)
    assert in_float(tmp_path / "q.onnx") == ([], 10)


def test_the_names_and_the_settings_worth_trying():
    assert [s.name for s in settings(frozenset({"avx2", "avx512_vnni"}))] == [
        "u8s8 per tensor", "u8s8 per channel", "s8s8 per channel",
    ]  # fmt: skip
    assert "u8s7 per channel" in [s.name for s in settings(frozenset({"avx2"}))]
    assert len(settings(frozenset({"asimddp"}))) == 3


def trial(name, metric, ratio):
    return TriedSetting(name, metric, ratio, (), 10)


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ([trial("a", 0.90, 0.5), trial("b", 0.90, 0.4)], "b"),
        ([trial("a", 0.891, 0.5), trial("b", 0.889, 0.4)], "a"),  # b loses more than a point of 0.90
        ([trial("a", 0.70, 0.5), trial("b", 0.60, 0.4)], "a"),
        ([trial("a", 0.70, 0.5), trial("b", 0.70, 0.4)], "b"),
    ],
)
def test_the_fastest_accurate_setting_is_chosen(trials, best):
    assert choose(trials, 0.90).name == best


def test_the_best_is_written_and_all_are_reported(model, batches, tmp_path):
    digits = load_data(_data())
    best, trials = fastest(
        model, tmp_path / "q.onnx", batches, lambda path: onnx_metric(path, CLASSIFICATION, digits.search), batches[0],
        instruments=Instruments(seconds=0.2),
    )  # fmt: skip
    assert best in trials
    assert len(trials) == len({t.name for t in trials}) >= 3
    assert all(t.ratio > 0 for t in trials)
    assert in_float(tmp_path / "q.onnx") == (list(best.in_float), best.layers)


def _data():
    from amc.config import Config

    return Config().data


def test_a_model_that_cannot_be_quantised_is_reported(batches, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"no")
    with pytest.raises(ExportError, match=r"no.onnx cannot be quantised"):
        quantise(tmp_path / "no.onnx", tmp_path / "q.onnx", U8S8, batches)


def test_a_run_puts_it_into_the_bundle_and_both_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--flops", "0.6", "--searcher", "uniform", "--evaluations", "1", "--finetune-epochs", "0", "--int8"]
    assert main(["search", *arguments, "--out", "run"]) == 0
    assert "model.int8.onnx (" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    int8 = result["int8"]
    assert int8["size"] == (tmp_path / "run" / "model.int8.onnx").stat().st_size < result["final"]["size"]
    test = load_data(_data()).test
    assert int8["test"] == pytest.approx(onnx_metric(tmp_path / "run" / "model.int8.onnx", CLASSIFICATION, test))
    assert int8["test"] > result["final"]["test"] - 0.05
    assert int8["ratio"]["low"] < int8["ratio"]["value"] < int8["ratio"]["high"]
    assert int8["latency_ms"] > 0
    assert int8["setting"] in [t["setting"] for t in int8["tried"]]
    slower = int8["ratio_to_final"]["high"] >= 1
    assert slower == any("is not faster than model.onnx" in note for note in result["notes"])
    for name in ("report.md", "report.html"):
        text = (tmp_path / "run" / name).read_text()
        assert "INT8" in text
        assert int8["setting"] in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ratio_to_final": {"value": 1.2, "low": 1.1, "high": 1.3}}, "is not faster than model.onnx"),
        ({"ratio_to_final": {"value": 0.99, "low": 0.9, "high": 1.01}}, "is not faster than model.onnx"),
        ({"search": 0.85}, "costs 5.0 points of accuracy"),
        ({"in_float": ["a", "b"]}, "2 of 10 convolutions"),
        ({}, None),
    ],
)
def test_drawbacks_of_the_8_bit_model_are_noted(changes, told):
    int8 = {"search": 0.9, "ratio_to_final": {"value": 0.5, "low": 0.4, "high": 0.6}, "in_float": [], "layers": 10}
    notes = int8_notes({"int8": {**int8, **changes}, "final": {"search": 0.9}, "metric": "accuracy"}, None)
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


def test_a_network_that_cannot_be_quantised_still_gets_a_bundle(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ExportError("model.onnx cannot be quantised: some reason")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amc.pipeline.measuring.fastest", fails)
    arguments = ["--flops", "0.6", "--searcher", "uniform", "--evaluations", "1", "--finetune-epochs", "0", "--int8"]
    assert main(["search", *arguments, "--out", "run"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["int8"] is None
    assert "There is no model.int8.onnx: model.onnx cannot be quantised: some reason" in result["notes"]
    assert not (tmp_path / "run" / "model.int8.onnx").exists()
    assert torch.get_num_threads() >= 1
