"""A user's latency models: classes, tables and commands, and the messages about faulty ones."""

import json
import stat
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from networks import built, told_of

from amc.errors import AmcError, ConfigError, LatencyError
from amc.latency import Predictor, layer_shapes, load_latency_model, runs_code
from amc.operators.channels import legal_widths


@pytest.fixture(scope="module")
def problem():
    """resnet8 on 8×8 images; networks are identified by their widths."""
    return told_of("resnet8-digits", lambda widths: json.dumps(dict(widths)).encode(), original_ms=0.2)


def random_rows(problem, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([[rng.choice(s) for s in problem.settings.values()] for _ in range(count)])


class ByWidth:
    """Milliseconds by the sum of the widths."""

    name, unit = "by width", "ms"

    def predict(self, widths):
        return 0.01 * sum(widths.values())


def test_layers_have_the_lengths_of_the_networks_weights():
    """The products of the lengths add up to the MACs of every policy."""
    for case in ("resnet8-digits", "mobilenetv2"):
        _, _, graph, costs = built(case)
        full = {s.name: s.channels for s in graph.sites}
        half = {name: max(1, width // 2) for name, width in full.items()}
        for widths in (full, half):
            macs = sum(
                (1 if s.depthwise else s.inputs(widths)) * s.outputs(widths) * s.taps * s.positions
                for s in layer_shapes(graph)
            )
            assert macs == costs.cost(list(widths.values()))["macs"]


def test_a_model_predicts_one_policy_and_many(problem):
    predictor = Predictor(ByWidth(), problem)
    rows = random_rows(problem, 5)
    np.testing.assert_allclose(predictor(rows), 0.01 * rows.sum(1))
    assert predictor.original == pytest.approx(0.01 * sum(problem.full.values()))
    assert predictor.name == "by width"


def test_many_policies_are_predicted_in_one_call(problem):
    class Batched(ByWidth):
        def predict_all(self, rows):
            asked.append(rows.shape)
            return 0.01 * rows.sum(1)

    asked = []
    rows = random_rows(problem, 7)
    np.testing.assert_allclose(Predictor(Batched(), problem)(rows), 0.01 * rows.sum(1))
    assert asked == [(7, len(problem.full))]


def test_prepare_is_called_with_the_network_first(problem):
    class Prepared(ByWidth):
        def prepare(self, told):
            self.macs = {layer.name: layer for layer in told.layers}

        def predict(self, widths):
            return 1e-3 * sum(layer.outputs(widths) for layer in self.macs.values())

    expected = 1e-3 * sum(layer.outputs(problem.full) for layer in problem.layers)
    assert Predictor(Prepared(), problem).original == pytest.approx(expected)


def answers(**members):
    return type("Own", (ByWidth,), members)()


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"unit": "s"}, "has the unit 's'"),
        ({"predict": None}, "has no method predict"),
        ({"predict": lambda self, widths: 1 / 0}, "fails in predict: ZeroDivisionError"),
        ({"prepare": lambda self, told: told.nothing}, "fails in prepare: AttributeError"),
        ({"predict": lambda self, widths: float("nan")}, "gives nan ms"),
        ({"predict": lambda self, widths: -1}, "gives -1.0 ms"),
        ({"predict": lambda self, widths: 0}, "gives 0.0 ms"),
        ({"predict": lambda self, widths: "fast"}, "gives 'fast', which is not a number"),
        ({"predict": lambda self, widths: 1e-6 * sum(widths.values())}, "are these seconds"),
        ({"predict": lambda self, widths: 9.0 / sum(widths.values())}, "seems to ignore the widths"),
    ],
)
def test_a_faulty_model_is_reported(problem, members, told):
    with pytest.raises(LatencyError, match=told):
        Predictor(answers(**members), problem)


@pytest.mark.parametrize(
    ("predict_all", "told"),
    [
        (lambda self, rows: rows, "for 3 policies"),
        (lambda self, rows: "fast", "does not return numbers"),
        (lambda self, rows: [1, 2, -3], "gives -3.0 ms"),
    ],
)
def test_a_faulty_predict_all_is_reported(problem, predict_all, told):
    with pytest.raises(LatencyError, match=told):
        Predictor(answers(predict_all=predict_all), problem)(random_rows(problem, 3))


def test_a_fast_device_is_believed_when_it_says_so(problem):
    fast = answers(any_speed=True, predict=lambda self, widths: 1e-6 * sum(widths.values()))
    assert Predictor(fast, problem).original < 0.01 * problem.original_ms


def test_names(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("class Mine:\n    name, unit = 'mine', 'ms'\n    predict = len\n")
    (tmp_path / "bad.py").write_text("class Mine:\n    def __init__(self): raise KeyError('x')\n")
    assert load_latency_model(f"{tmp_path}/own.py:Mine").name == "mine"
    with pytest.raises(ConfigError, match="KeyError"):
        load_latency_model(f"{tmp_path}/bad.py:Mine")
    with pytest.raises(ConfigError, match="unknown latency model 'nothing'"):
        load_latency_model("nothing")
    with pytest.raises(ConfigError, match="cannot read"):
        load_latency_model("absent.csv")
    assert runs_code("own.py:Mine")
    assert runs_code("command:./x {onnx}")
    assert not runs_code("table.csv")


def test_an_installed_model_is_found_by_its_entry_point(tmp_path, monkeypatch):
    folder = tmp_path / "own_latency-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: own-latency\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[amc.latency_models]\nmine = own_latency:Mine\nbad = own_latency:No\n")
    (tmp_path / "own_latency.py").write_text("class Mine:\n    name, unit = 'installed', 'ms'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_latency_model("mine").name == "installed"
    with pytest.raises(ConfigError, match=r"the latency model bad \(own_latency:No\) cannot be loaded"):
        load_latency_model("bad")
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        load_latency_model("minee")


def site_table(problem):
    rows = [{"layer": "*", "widths": "", "ms": 0.05}]
    for site, settings in problem.settings.items():
        rows += [{"layer": site, "widths": w, "ms": 0.01 * w} for w in (settings[0], settings[-1])]
    return rows


def layer_ms(layer, inputs, outputs):
    return 1e-6 * layer.taps * layer.positions * (1 if layer.depthwise else inputs) * outputs


def layer_table(problem):
    rows = []
    for layer in problem.layers:
        grid = [sorted({axis(problem.smallest), axis(problem.full)}) for axis in (layer.inputs, layer.outputs)]
        rows += [
            {"layer": layer.name, "widths": f"{i}x{o}", "ms": layer_ms(layer, i, o)}
            for i in grid[0] for o in grid[1] if i == o or not layer.depthwise
        ]  # fmt: skip
    return rows


def as_csv(rows, path):
    path.write_text("layer,widths,ms\n" + "".join(f"{r['layer']},{r['widths']},{r['ms']}\n" for r in rows))
    return path


def as_json(rows, path):
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(("write", "name"), [(as_csv, "t.csv"), (as_json, "t.json")])
def test_a_table_by_site_is_summed_and_linear_between(problem, tmp_path, write, name):
    predictor = Predictor(load_latency_model(str(write(site_table(problem), tmp_path / name))), problem)
    rows = random_rows(problem, 20)
    np.testing.assert_allclose(predictor(rows), 0.05 + 0.01 * rows.sum(1))
    assert predictor.name == name


@pytest.mark.parametrize("case", ["resnet8-digits", "mobilenetv1"])
def test_a_table_by_layer_is_bilinear(problem, tmp_path, case):
    """Times in proportion to inputs × outputs are bilinear, so the prediction is exact."""
    _, _, graph, _ = built(case)
    settings = {s.name: legal_widths(s.channels, 0.2, 0) for s in graph.sites}
    own = replace(problem, full={s.name: s.channels for s in graph.sites}, settings=settings,
                  layers=layer_shapes(graph), original_ms=None)  # fmt: skip
    predictor = Predictor(load_latency_model(str(as_csv(layer_table(own), tmp_path / "t.csv"))), own)
    rows = random_rows(own, 5)
    for row, found in zip(rows.tolist(), predictor(rows), strict=True):
        widths = dict(zip(own.full, row, strict=True))
        assert found == pytest.approx(sum(layer_ms(x, x.inputs(widths), x.outputs(widths)) for x in own.layers))


def test_a_table_predicts_quickly(problem, tmp_path):
    predictor = Predictor(load_latency_model(str(as_csv(layer_table(problem), tmp_path / "t.csv"))), problem)
    rows = random_rows(problem, 200)
    predictor(rows)
    start = time.perf_counter()
    for _ in range(10):
        predictor(rows)
    assert (time.perf_counter() - start) / 2000 < 1e-4


def without(rows, drop):
    return [r for r in rows if not drop(r)]


def changed(rows, **values):
    return [{**rows[0], **values}, *rows[1:]]


@pytest.mark.parametrize(
    ("table", "change", "told"),
    [
        (site_table, lambda rows: [*rows, {"layer": "layer9", "widths": 4, "ms": 1}], "'layer9' is not in the network"),
        (site_table, lambda rows: without(rows, lambda r: r["layer"] == rows[-1]["layer"]), "no rows for .* \\(1 of"),
        (layer_table, lambda rows: without(rows, lambda r: r["layer"] == rows[-1]["layer"]), "no rows for fc \\(1 of"),
        (layer_table, lambda rows: rows[:-1], "form a grid|goes from"),
        (site_table, lambda rows: without(rows, lambda r: r is rows[1]), "may ask for .* or raise --min-keep"),
        (lambda p: site_table(p)[1:] + layer_table(p), lambda rows: rows, "mixes rows"),
    ],
)
def test_a_table_that_does_not_suit_the_network_is_refused(problem, tmp_path, table, change, told):
    path = as_json(change(table(problem)), tmp_path / "t.json")
    with pytest.raises(LatencyError, match=told):
        Predictor(load_latency_model(str(path)), problem)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.csv", "site,width,ms\na,4,1\n", "its header is 'site,width,ms', but must be layer,widths,ms"),
        ("t.csv", "", "its header is ''"),
        ("t.csv", "layer,widths,ms\n", "has no rows"),
        ("t.csv", "layer,widths,ms\n*,,1\n", "has no rows"),
        ("t.csv", "layer,widths,ms\na,4,fast\n", "row 2: could not convert"),
        ("t.csv", "layer,widths,ms\na,4,nan\n", "row 2: a takes nan ms"),
        ("t.csv", "layer,widths,ms\na,4,-1\n", "row 2: a takes -1.0 ms"),
        ("t.csv", "layer,widths,ms\na,0,1\n", "row 2: a has the widths '0'"),
        ("t.csv", "layer,widths,ms\na,4x4x4,1\n", "row 2: a has the widths '4x4x4'"),
        ("t.csv", "layer,widths,ms\na,4,1\na,4,1\n", "row 3: a already has a row with these widths"),
        ("t.csv", "layer,widths,ms\na,4,1,5\n", "row 2: it must have"),
        ("t.csv", "layer,widths,ms\n,4,1\n", "row 2: it has no layer"),
        ("t.json", "{", "it is not JSON"),
        ("t.json", "{}", "must hold a list of rows"),
        ("t.json", "[1]", "row 1: it must have"),
        ("t.json", '[{"layer": "a", "widths": [4, "x"], "ms": 1}]', "row 1: invalid literal"),
        ("t.json", "[" * 100_000, "t.json: "),
    ],
)
def test_errors_in_a_table_name_the_row(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_latency_model(str(tmp_path / name))


def script(folder, body):
    """A command that runs Python: ``onnx`` is the file's path."""
    path = folder / "measure.py"
    path.write_text(f"#!{sys.executable} -S\nimport json, sys, time\nonnx = sys.argv[1]\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"command:{path} {{onnx}}"


PRINTS_WIDTHS = "print('connecting …'); print(0.01 * sum(json.load(open(onnx)).values()), UNIT)"


@pytest.mark.parametrize(("unit", "scale"), [("", 1), ("'ms'", 1), ("'us'", 1e-3), ("'s'", 1e3)])
def test_a_command_prints_milliseconds(problem, tmp_path, unit, scale):
    command = script(tmp_path, PRINTS_WIDTHS.replace(", UNIT", f", {unit}" if unit else ""))
    predictor = Predictor(load_latency_model(command), problem)
    assert predictor.original == pytest.approx(scale * 0.01 * sum(problem.full.values()))
    assert predictor.measures


def test_a_command_measures_a_network_once(problem, tmp_path):
    count = tmp_path / "count"
    command = script(tmp_path, f"open({str(count)!r}, 'a').write('x'); print(sum(json.load(open(onnx)).values()))")
    kept = {}

    def remember(key, measure):
        if key not in kept:
            kept[key] = measure()
        return kept[key]

    own = replace(problem, remember=remember)
    for _ in range(2):  # as an interrupted run does
        predictor = Predictor(load_latency_model(command), own)
        assert predictor.predict(own.full) == predictor.original
    assert count.read_text() == "xxxxxx"  # the original and the smallest, three runs of each
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('no device', file=sys.stderr); sys.exit(3)", "exit code 3: no device"),
        ("sys.exit(3)", "exit code 3: it printed nothing"),
        ("pass", "printed nothing"),
        ("print('about 3 ms')", "printed 'about 3 ms'"),
        ("print('3,2')", "printed '3,2'"),
        ("print('nan')", "must be above 0"),
        ("print('inf')", "must be above 0"),
        ("print(-1)", "must be above 0"),
        ("sys.stdout.buffer.write(bytes(range(128, 256)))", "printed"),
        ("print(0.0002)", r"are these seconds\? Print the unit too, as in '0.0002 ms'"),
        ("import os\nif os.fork() == 0: time.sleep(60)\ntime.sleep(60)", "did not finish within 0.5 s"),
    ],
)
def test_a_failing_command_is_reported(problem, tmp_path, body, told):
    start = time.perf_counter()
    with pytest.raises(LatencyError, match=told):
        Predictor(load_latency_model(script(tmp_path, body)), replace(problem, timeout=0.5 if "fork" in body else 60))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("command:./measure.sh", "must have {onnx}"),
        ("command:", "must have {onnx}"),
        ("command:'x {onnx}", "cannot be split"),
        ("command:./absent {onnx}", "cannot run ./absent"),
    ],
)
def test_an_invalid_command_is_reported(problem, command, told):
    with pytest.raises(AmcError, match=told):
        Predictor(load_latency_model(command), problem)
