"""The probe: the original's file with its tensors cut runs, has the policy's shapes and size, and takes its time."""

import numpy as np
import onnx
import pytest
import torch

from amc.cli import main
from amc.export import count_onnx_macs, export_onnx, file_layout
from amc.journal import Journal
from amc.latency import LatencyProbe, measure
from amc.resources import ResourceModel


def test_the_cut_file_is_the_policys(resnet8, tmp_path):
    graph, model = resnet8
    example = torch.randn(1, 1, 8, 8)
    export_onnx(model, example, tmp_path / "original.onnx")
    layout = file_layout(tmp_path / "original.onnx", graph, model)
    probe = LatencyProbe(tmp_path / "original.onnx", layout, example.numpy())
    widths = [max(2, site.channels // 3) for site in graph.sites]
    kept = [np.arange(w) for w in widths]
    (tmp_path / "cut.onnx").write_bytes(probe.cut(kept))
    expected = ResourceModel(graph, model, layout).cost(widths)
    assert count_onnx_macs(tmp_path / "cut.onnx", example) == expected["macs"]
    assert (tmp_path / "cut.onnx").stat().st_size == expected["size"]
    onnx.checker.check_model(onnx.load(str(tmp_path / "cut.onnx")))
    whole = [np.arange(site.channels) for site in graph.sites]
    assert probe.cut(whole) == (tmp_path / "original.onnx").read_bytes()
    assert 0 < probe(kept) < 100


def test_a_search_for_latency_records_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--flops", "0.6", "--reward", "error-latency", "--evaluations", "2", "--searcher", "random"]
    assert main(["search", *arguments, "--finetune-epochs", "0", "--out", "run"]) == 0
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        found = list(journal.records("evaluation"))
    for record in found:
        error = 1 - record["metric"]
        assert record["reward"] == pytest.approx(-error * np.log1p(1000 * record["costs"]["latency"]))
    assert len(found) == 2


def test_measure_prints_the_ratio_and_where_it_was_measured(resnet8, tmp_path, capsys):
    _, model = resnet8
    export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    assert main(["measure", path, path, "--seconds", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "1. model.onnx" in out
    assert "2. model.onnx" in out
    assert "ONNX Runtime" in out
    assert "inputs [1, 1, 8, 8]" in out


FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("inputs", "options", "told"),
    [
        ([(FLOAT, ["n", 3, "h", "w"])], [], "say which with --shape"),
        ([(FLOAT, ["n", 3, "h", "w"])], ["--shape", "4,8,8"], "but the model takes [3, 'h', 'w']"),
        ([(FLOAT, ["n", 3]), (FLOAT, ["n", 3])], [], "the model has 2 inputs"),
        ([(DOUBLE, ["n", 3])], [], "only float32"),
        ([(FLOAT, ["n", 3])], ["--threads", "0"], "threads is 0"),
        ([], [], "cannot load"),
    ],
)
def test_measure_refuses_what_it_cannot_run(tmp_path, capsys, inputs, options, told):
    path = tmp_path / "model.onnx"
    if inputs:
        infos = [onnx.helper.make_tensor_value_info(f"x{i}", *info) for i, info in enumerate(inputs)]
        output = onnx.helper.make_tensor_value_info("y", inputs[0][0], None)
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x0"], ["y"])], "g", infos, [output])
        opset = [onnx.helper.make_opsetid("", 17)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    assert main(["measure", str(path), *options]) == 2
    assert told in capsys.readouterr().err


def test_a_network_whose_file_holds_widths_elsewhere_is_exported_anew(tmp_path, monkeypatch):
    """Flattening is a Reshape to a fixed length in the file; the probe cannot cut that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))\n"
    )
    arguments = ["--flops", "0.6", "--reward", "error-latency", "--evaluations", "1", "--model", "net.py:make"]
    assert main(["search", *arguments, "--finetune-epochs", "0", "--out", "run"]) == 0
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        assert journal.last("evaluation")["costs"]["latency"] > 0


def test_timing_leaves_denormals_as_they_are(resnet8, tmp_path):
    _, model = resnet8
    export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / "model.onnx")
    measure({"model": tmp_path / "model.onnx"}, np.zeros((1, 1, 8, 8), np.float32), seconds=0.1)
    assert float(torch.tensor(1e-40) * 1.0) > 0
