"""The probe cuts the tensors of the original's file: it runs, and has the policy's shapes, size and latency."""

import json
import re
import sys
import time

import numpy as np
import onnx
import pytest
import torch

from amc.cli import main
from amc.deploy.export import export_onnx, export_pruned, file_layout
from amc.deploy.onnx_macs import count_onnx_macs
from amc.latency import LatencyProbe, measure, peak_memory
from amc.latency.measurement import time_call
from amc.runtime.journal import Journal
from amc.space.resources import ResourceModel


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
    assert 0 < probe.compare(probe.cut(kept), 3).ratio < 2


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


def onnx_model(path, nodes, inputs, opset=17):
    """A model of nodes from ``x0`` to ``y``."""
    infos = [onnx.helper.make_tensor_value_info(f"x{i}", *info) for i, info in enumerate(inputs)]
    output = onnx.helper.make_tensor_value_info("y", inputs[0][0] if inputs else FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "g", infos, [output])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9), path)


def test_measure_prints_the_ratio_and_where_it_was_measured(resnet8, tmp_path, capsys):
    _, model = resnet8
    export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    assert main(["measure", path, path, "--seconds", "0.2", "--json", str(tmp_path / "m.json")]) == 0
    out = capsys.readouterr().out
    assert "1. model.onnx" in out
    assert "2. model.onnx" in out
    assert "ONNX Runtime" in out
    assert "inputs [1, 1, 8, 8]" in out
    written = json.loads((tmp_path / "m.json").read_text())
    assert (written["format"], written["threads"], written["inputs"]) == ("amc-measure", 1, [1, 1, 8, 8])
    assert {"cpu", "runtime", "load_before", "load_after", "too_noisy"} <= written.keys()
    first, second = written["models"].values()
    assert first["ratio"] == 1
    assert 0 < second["min_ms"] <= second["p10_ms"] <= second["median_ms"]
    assert second["ratio_low"] < second["ratio"] < second["ratio_high"]
    assert second["peak_memory"] > (tmp_path / "model.onnx").stat().st_size


def test_a_machine_that_is_too_noisy_is_reported(resnet8, tmp_path, capsys):
    _, model = resnet8
    export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    assert main(["measure", path, path, "--seconds", "0.1", "--precision", "1e-9"]) == 0
    assert "too noisy to tell" in capsys.readouterr().out


def test_the_ratio_of_two_models_is_that_of_their_blocks(resnet8, tmp_path):
    """The ratio of two models comes from their blocks; swapping the models gives the inverse."""
    _, model = resnet8
    for name in "ab":
        export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / name)
    inputs = np.zeros((1, 1, 8, 8), np.float32)
    found = measure({n: tmp_path / n for n in ("a", "b")}, inputs, seconds=0.1)
    x = found.latencies["b"]
    assert found.ratio("b", "a") == pytest.approx((x.ratio, x.ratio_low, x.ratio_high))
    value, low, high = found.ratio("a", "b")
    assert (1 / value, 1 / high, 1 / low) == pytest.approx(found.ratio("b", "a"))
    assert found.logs.shape[1] == 2


def test_slow_models_have_fewer_rounds(monkeypatch, tmp_path):
    """The time limit ends the rounds of a block after at least three."""
    calls = []

    class Slow:
        def __init__(self, model, threads):
            pass

        def __call__(self, inputs):
            calls.append(1)

    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, clock, lambda: 0.01 * len(calls))
    monkeypatch.setattr(sys.modules["amc.latency.measurement"], "Runner", Slow)
    found = measure({"a": tmp_path}, np.zeros(1), seconds=0.01)
    assert found.rounds == 3 * 6
    assert len(calls) == 4 * 6
    assert found.latencies["a"].min_ms == pytest.approx(10)


def test_time_of_other_processes_does_not_count(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 0.010]).__next__)
    monkeypatch.setattr(time, "process_time", iter([0.0, 0.004]).__next__)
    assert time_call(lambda inputs: None, np.zeros(1), 2) == pytest.approx(2.0)


def test_the_peak_memory_of_a_model_that_does_not_run_is_unknown(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no")
    assert peak_memory(tmp_path / "broken.onnx", (1, 3)) is None


FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("inputs", "options", "told"),
    [
        ([(FLOAT, ["n", 3, "h", "w"])], [], "give sizes with --input-size"),
        (
            [(FLOAT, ["n", 3, "h", "w"])],
            ["--input-size", "4,8,8"],
            "model.onnx takes inputs of shape [3, 'h', 'w'] after the batch, not [4, 8, 8]",
        ),
        ([(FLOAT, ["n", 3]), (FLOAT, ["n", 3])], [], "has 2 inputs"),
        ([(DOUBLE, ["n", 3])], [], "only float32"),
        ([(FLOAT, ["n", 3])], ["--threads", "0"], "threads is 0"),
        ([(FLOAT, ["n", 3])], ["--input-size", "3,x"], "must be a whole number"),
        ([], [], "cannot load"),
    ],
)
def test_measure_refuses_what_it_cannot_run(tmp_path, capsys, inputs, options, told):
    path = tmp_path / "model.onnx"
    if inputs:
        onnx_model(path, [onnx.helper.make_node("Relu", ["x0"], ["y"])], inputs)
    assert main(["measure", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"this is not ONNX", "cannot load .*other.onnx: it is not an ONNX file"),
        ("unknown operator", "cannot load .*other.onnx.*Nothing"),
        ("operator of another type", "cannot load .*other.onnx.*implementation"),
        ("another shape", r"other.onnx takes inputs of shape \[4\] after the batch, not \[3\]"),
        ("no input", "other.onnx has 0 inputs"),
    ],
)
def test_measure_names_the_model_that_is_wrong(tmp_path, capsys, content, told):
    good, bad = tmp_path / "model.onnx", tmp_path / "other.onnx"
    relu, shape = [onnx.helper.make_node("Relu", ["x0"], ["y"])], [(FLOAT, [1, 3])]
    onnx_model(good, relu, shape)
    if isinstance(content, bytes):
        bad.write_bytes(content)
    elif content == "another shape":
        onnx_model(bad, relu, [(FLOAT, [1, 4])])
    elif content == "no input":
        onnx_model(bad, [onnx.helper.make_node("RandomNormal", [], ["y"], shape=[1, 3])], [])
    elif content == "unknown operator":
        onnx_model(bad, [onnx.helper.make_node("Nothing", ["x0"], ["y"])], shape)
    else:
        onnx_model(bad, [onnx.helper.make_node("Relu", ["x0"], ["y"])], [(onnx.TensorProto.BFLOAT16, [1, 3])])
    assert main(["measure", str(good), str(bad), "--seconds", "0.1"]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("view", "inputs", "anew"),
    [("h.flatten(1)", 16 * 36, False), ("h.view(h.shape[0], h.shape[1], 36).mean(2)", 16, True)],
)
def test_a_file_with_widths_in_constants_is_cut_or_exported_again(tmp_path, monkeypatch, view, inputs, anew):
    """Both files have a Reshape to fixed lengths. The probe can handle ``[batch, width]``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.Linear({inputs}, 10)\n"
        "    def forward(self, x):\n"
        "        h = self.conv(x).relu()\n"
        f"        return self.fc({view})\n"
    )
    made = []
    monkeypatch.setattr("amc.latency.profiling.export_pruned", lambda *args: made.append(args) or export_pruned(*args))
    arguments = ["--flops", "0.6", "--reward", "error-latency", "--evaluations", "1", "--model", "net.py:Net"]
    assert main(["search", *arguments, "--finetune-epochs", "0", "--out", "run"]) == 0
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        assert journal.last("evaluation")["costs"]["latency"] > 0
    assert bool(made) is anew


def test_timing_leaves_denormals_as_they_are(resnet8, tmp_path):
    _, model = resnet8
    export_onnx(model, torch.randn(1, 1, 8, 8), tmp_path / "model.onnx")
    measure({"model": tmp_path / "model.onnx"}, np.zeros((1, 1, 8, 8), np.float32), seconds=0.1)
    assert float(torch.tensor(1e-40) * 1.0) > 0
