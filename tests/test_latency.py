"""The probe: the original's file with its tensors cut runs, has the policy's shapes and size, and takes its time."""

import numpy as np
import onnx
import pytest
import torch

from amc.cli import main
from amc.export import count_onnx, export_onnx, file_layout
from amc.journal import Journal
from amc.latency import LatencyProbe
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
    counted = count_onnx(tmp_path / "cut.onnx", example)
    expected = ResourceModel(graph, model, layout).cost(widths)
    assert (counted["macs"], counted["size"]) == (expected["macs"], expected["size"])
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
