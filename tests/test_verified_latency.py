"""Whole runs under a limit on latency, on a simulated device: nothing is timed."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from amc.cli import main
from amc.commands.command import NOT_MET
from amc.latency import Latency, LatencyProbe, Measurement
from amc.latency.correction import ROUNDS
from amc.latency.instruments import Instruments
from amc.latency.reference import Timing
from amc.runtime.journal import Journal

SEARCH = ["--threads", "1", "--evaluations", "3"]
TRAINED = [*SEARCH, "--candidates", "2", "--finetune-epochs", "0.5", "--precision", "float32"]
QUICK = [*SEARCH, "--no-finetune"]


def operator_ms(proto) -> dict[str, float]:
    """A device that computes channels in blocks of 8: milliseconds by the operator's output."""
    stored = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    shapes = {
        n.output[0]: stored[n.input[1]]
        for n in proto.graph.node
        if n.op_type in ("Conv", "Gemm") and n.input[1] in stored
    }
    return {n: 0.001 + 1e-4 * -(-s[0] // 8) * -(-s[1] // 8) * int(np.prod(s[2:])) for n, s in shapes.items()}


def total_ms(proto) -> float:
    return sum(operator_ms(proto).values())


class Device(LatencyProbe):
    """The probe, with made-up times: those of the operators, to a power of the whole."""

    calls = 0
    power = 1.0

    def __init__(self, original, layout, inputs, threads=1, original_ms=None):
        self._proto = onnx.load(str(original))
        self._tensors = [onnx.numpy_helper.to_array(t) for t in self._proto.graph.initializer]
        self._layout, self._whole = layout, total_ms(self._proto)
        self.original_ms = original_ms or self._whole

    def compare(self, model, rounds=30):
        type(self).calls += 1
        return Timing((total_ms(onnx.load_from_string(model)) / self._whole) ** self.power, 1.0, self._whole)

    compare_with_new_session = compare

    def profile(self, model, known):
        found = np.zeros(max(known.values()) + 1)
        for name, ms in operator_ms(onnx.load_from_string(model)).items():
            found[known[name]] = ms
        return found


def measured(hidden: float, busy: float = 1.0):
    """`measure` on the same device; the final network is slower by an unknown factor.

    The device may be busy, which slows the original.
    """

    def measure(models, inputs, threads, *args, **kwargs):
        ms = {name: total_ms(onnx.load(str(path))) for name, path in models.items()}
        original, ratio = busy * ms["original"], hidden * (ms["final"] / ms["original"]) ** Device.power
        latencies = {
            "original": Latency(*[original] * 3, 1.0, 1.0, 1.0),
            "final": Latency(*[ratio * original] * 3, ratio, 0.999 * ratio, 1.001 * ratio),
        }
        return Measurement(latencies, "original", 6, threads, np.zeros((6, 2)))

    return measure


def given(monkeypatch, measure=None):
    """Use this device, and optionally another `measure`, in all later runs."""
    instruments = Instruments(Device, measure or measured(1.0))
    monkeypatch.setattr(Instruments, "usual", classmethod(lambda cls: instruments))


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(Device, "calls", 0)
    given(monkeypatch)
    return Device


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_the_limit_is_met_and_reported(device, tmp_path, capsys):
    assert main(["search", "--latency", "0.6", *TRAINED, "--out", str(tmp_path / "run")]) == 0
    found = result(tmp_path / "run")
    assert [p["resource"] for p in found["proof"]] == ["latency"]
    assert found["proof"][0]["met"]
    assert found["latency"]["ratio"]["high"] <= 0.6
    assert found["latency"]["prediction"]["error"]["mean"] < 0.02
    prediction = found["latency"]["prediction"]
    assert prediction["measured_error"] < 0.02
    assert [c["why"] for c in prediction["corrections"]] == ["near the budget, before the search"]
    assert all(s["width"] % 8 == 0 for s in found["sites"])
    assert "measured beside the original" in capsys.readouterr().out
    report = (tmp_path / "run" / "report.md").read_text()
    assert "cross-validated error" in report


def test_a_missed_limit_starts_another_round(device, tmp_path, monkeypatch):
    tries = iter([measured(1.0, busy=2.0), measured(1.15), measured(1.15, busy=2.0)])
    last = measured(1.15, busy=2.0)
    given(monkeypatch, lambda *a, **k: next(tries, last)(*a, **k))
    assert main(["search", "--latency", "0.53", "--flops", "0.9", *QUICK, "--out", str(tmp_path / "run")]) == 0
    found = result(tmp_path / "run")
    assert {p["resource"]: p["met"] for p in found["proof"]} == {"latency": True, "macs": True}
    assert found["latency"]["ratio"]["high"] <= 0.53
    whys = [c["why"] for c in found["latency"]["prediction"]["corrections"]]
    assert whys.count("the fine-tuned network") == 1  # what it was slower by is remembered in the next search
    assert "the machine was busy" in next(p["how"] for p in found["proof"] if p["resource"] == "latency")


def test_an_unreachable_limit_delivers_the_best_and_says_so(device, tmp_path, monkeypatch, capsys):
    def slower(models, *args, **kwargs):
        slower.times.append(1.2 * slower.times[-1])
        return measured(slower.times[-1])(models, *args, **kwargs)

    slower.times = [1.0]
    given(monkeypatch, slower)
    arguments = ["--latency", "0.6", *QUICK, "--out", str(tmp_path / "run")]
    assert main(["search", *arguments]) == NOT_MET == 3
    assert len(slower.times) - 1 <= ROUNDS
    told = " ".join(capsys.readouterr().out.split())
    found = result(tmp_path / "run")
    (proof,) = found["proof"]
    assert not proof["met"]
    assert proof["exported"] > proof["limit"]
    assert "NOT met" in told
    assert found["notes"][0].startswith("The limit on latency is not met: ")
    assert "Raise --latency to 0." in found["notes"][0]
    assert "--min-keep" in found["notes"][0]
    assert found["notes"][0] in told
    assert (tmp_path / "run" / "model.onnx").exists()
    assert "| NO |" in (tmp_path / "run" / "report.md").read_text()
    assert main(["search", "--resume", str(tmp_path / "run")]) == NOT_MET


def test_a_limit_is_kept_where_small_networks_are_faster_than_their_operators(device, tmp_path, monkeypatch):
    """On such a device, the model once predicted negative milliseconds for the smallest policy."""
    monkeypatch.setattr(Device, "power", 1.3)
    arguments = ["--flops", "0.5", "--latency", "0.62", *QUICK]
    code = main(["search", *arguments, "--out", str(tmp_path / "run")])
    found = result(tmp_path / "run")
    met = {p["resource"]: p["met"] for p in found["proof"]}
    assert (code, met) == (0, {"macs": True, "latency": True})
    assert all(0.5 <= c["factor"] <= 2 for c in found["latency"]["prediction"]["corrections"])
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        assert all(r["costs"]["latency"] > 0 for r in journal.records("evaluation"))
        assert all(r["predicted"] > 0 for r in journal.records("latency"))


def test_a_model_that_does_not_know_the_device_is_refused_before_the_search(device, tmp_path, monkeypatch, capsys):
    path = tmp_path / "p.json"
    assert main(["profile", "--threads", "1", "--out", str(path)]) == 0
    monkeypatch.setattr(Device, "power", 0.2)
    arguments = ["search", "--latency", "0.3", "--latency-model", str(path), *QUICK, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "latency cannot be predicted: a network takes" in told
    assert "--profile-seconds" in told
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        assert journal.last("evaluation") is None


def test_an_interrupted_run_resumes_to_the_same_result(device, tmp_path, monkeypatch):
    arguments = ["search", "--latency", "0.6", *QUICK, "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    calls = device.calls

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        given(patch, stopped)
        assert main([*arguments, "--out", str(tmp_path / "run")]) == 130
    assert device.calls - calls < 24 <= calls  # the profile was there: it is of 24 networks at least
    calls = device.calls
    assert main(["search", "--resume", str(tmp_path / "run")]) == 0
    assert device.calls == calls  # nothing is measured again
    whole, resumed = result(tmp_path / "whole"), result(tmp_path / "run")
    assert whole["sites"] == resumed["sites"]
    assert whole["latency"]["prediction"] == resumed["latency"]["prediction"]


def test_predictions_for_another_device_are_accepted(device, tmp_path):
    (tmp_path / "m.py").write_text(
        "class Model:\n"
        "    name, unit, any_speed = 'phone', 'ms', True\n"
        "    def predict(self, widths):\n"
        "        return 1.0 + sum(widths.values())\n"
    )
    arguments = ["--latency", "0.5", "--latency-model", f"{tmp_path / 'm.py'}:Model", *QUICK]
    assert main(["search", *arguments, "--out", str(tmp_path / "run")]) == 0
    found = result(tmp_path / "run")
    assert found["proof"][0]["how"] == "predicted by phone"
    assert found["proof"][0]["exported"] == 1 + sum(s["width"] for s in found["sites"])
    assert found["proof"][0]["exported"] <= 0.5 * (1 + sum(s["of"] for s in found["sites"]))
    assert not (tmp_path / "run" / "profile.json").exists()


def test_a_search_for_macs_takes_latency_into_account(device, tmp_path, capsys):
    """The device computes blocks of 8 channels, so some networks with 0.6 of the MACs are faster than others."""
    profile, times = tmp_path / "resnet8.profile.json", {}
    assert main(["profile", "--out", str(profile)]) == 0
    common = ["search", "--flops", "0.6", *QUICK, "--evaluations", "12"]
    aware = ["--latency-aware", "--latency-weight", "4"]
    for name, more in (("plain", []), ("aware", aware), ("by profile", [*aware, "--latency-model", str(profile)])):
        assert main([*common, *more, "--out", str(tmp_path / name)]) == 0
        found = result(tmp_path / name)
        assert [(p["resource"], p["met"]) for p in found["proof"]] == [("macs", True)]
        times[name] = total_ms(onnx.load(str(tmp_path / name / "model.onnx")))
        with Journal(tmp_path / name / "journal.jsonl") as journal:
            assert all(("latency" in r["costs"]) == (name != "plain") for r in journal.records("evaluation"))
        assert (tmp_path / name / "profile.json").exists() == (name == "aware")
    assert max(times["aware"], times["by profile"]) < times["plain"]


@pytest.mark.parametrize(
    ("more", "other"),
    [
        (["--latency", "0.5"], "--latency"),
        (["--reward", "error"], "--reward error"),
        (["--criterion", "l2-mean", "--criterion-scope", "global"], "--criterion-scope global"),
        (["--searcher", "tpe", "--storage", "study.db"], "--storage"),
        (["--latency-model", "table.csv"], "--latency-model table.csv"),
    ],
)
def test_latency_aware_refuses_conflicting_options(more, other, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--flops", "0.5", "--latency-aware", *more]) == 2
    assert f"--latency-aware cannot be combined with {other}: leave one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_profile_serves_many_runs_but_not_other_threads(device, tmp_path, capsys):
    path = tmp_path / "resnet8.profile.json"
    assert main(["profile", "--out", str(path)]) == 0
    assert "blocks of 8" in capsys.readouterr().out
    arguments = ["search", "--latency", "0.6", "--latency-model", str(path), *QUICK, "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        assert journal.last("latency") is not None
    assert main([*arguments[:-1], str(tmp_path / "other"), "--latency-threads", "2"]) == 2
    assert "for another number of threads (1; here it is 2)" in capsys.readouterr().err
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "samples": content["samples"][:3]}))
    assert main([*arguments[:-1], str(tmp_path / "other")]) == 2
    assert "holds 3 networks, but at least 24 are needed" in capsys.readouterr().err
