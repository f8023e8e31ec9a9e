"""result.json: read by the models that describe it, written as they say, and documented by them."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from amc.deploy.result import ResultFile, as_markdown, read_result, rows
from amc.errors import BundleError
from amc.pipeline.summary import notes, trained_notes

HERE = Path(__file__).parent
OLD = HERE / "data" / "bundle-1" / "result.json"


def keys(value: Any, path: str = "") -> set[str]:
    """Paths of all fields, as `rows` gives them; what is within free objects is left out."""
    free = {"data.splits", "budget.asked", "budget.limits", "environment.versions", "config", "latency.prediction"}
    found = set()
    for name, inner in value.items():
        where = f"{path}{name}{'[]' if isinstance(inner, list) else ''}"
        found.add(where)
        each = inner if isinstance(inner, list) else [inner]
        for part in each:
            if isinstance(part, dict) and where not in free:
                found |= keys(part, f"{where}.")
    return found


def test_the_documentation_is_made_of_the_models() -> None:
    assert (HERE.parent / "docs" / "result.md").read_text(encoding="utf-8") == as_markdown()


def test_a_result_of_version_0_1_is_read() -> None:
    assert read_result(OLD)["final"]["size"] > 0


@pytest.mark.parametrize("name", ["digits", "latency"])
def test_every_key_that_a_run_writes_is_described(name: str) -> None:
    (run,) = json.loads((HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))["runs"].values()
    described = {where for where, _, _ in rows()}
    assert keys(run["result"]) <= described
    assert keys(json.loads(OLD.read_text(encoding="utf-8"))) <= described


@pytest.mark.parametrize("value", [None, "1", True, [], {}, float("nan"), float("inf"), 1e301, 10**400, -(10**400)])
@pytest.mark.parametrize("path", ["final.macs", "parity.samples", "stages.0.seconds", "search.evaluations"])
def test_what_is_no_number_is_refused_in_one_line(tmp_path: Path, path: str, value: Any) -> None:
    result = copy.deepcopy(json.loads(OLD.read_text(encoding="utf-8")))
    *way, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    here = result
    for part in way:
        here = here[part]
    here[last] = value
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    told = re.escape(path.replace(".0.", "[0]."))
    with pytest.raises(BundleError, match=rf"is damaged: {told} is not a number\.$|is not JSON\.$") as caught:
        read_result(tmp_path / "result.json")
    assert str(caught.value).isprintable()


def test_texts_are_printable(tmp_path: Path) -> None:
    result = {**json.loads(OLD.read_text(encoding="utf-8")), "task": "a\x1b[31m\nb"}
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert read_result(tmp_path / "result.json")["task"] == "a [31m b"


def test_the_models_are_frozen() -> None:
    assert all(part.model_config["frozen"] for part in (ResultFile, ResultFile.model_fields["final"].annotation))


def test_a_gain_is_said_to_come_from_training():
    summary = {"metric": "accuracy", "original": {"test": 0.97}, "final": {"test": 0.985},
               "stages": [{"name": "search", "seconds": 1.0}, {"name": "fine-tune", "seconds": 2.0}]}  # fmt: skip
    (note,) = trained_notes(summary)
    assert "98.50 instead of 97.00 % on the test split" in note
    assert "comes from the training" in note
    assert trained_notes({**summary, "stages": summary["stages"][:1]}) == []
    assert trained_notes({**summary, "final": {"test": 0.97}}) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"avx2", "avx512f"}, "2 of 3 widths are not multiples of 16"),
        ({"avx2"}, "1 of 3 widths is not a multiple of 8"),
    ],
)
def test_why_fewer_macs_are_not_less_time(monkeypatch, flags, told):
    """Widths count against what this CPU computes at once. Those that were kept whole do not."""
    monkeypatch.setattr("amc.pipeline.summary.cpu_flags", lambda: frozenset(flags))
    summary = {
        "original": {"macs": 100.0, "latency_ms": 2.0},
        "final": {"macs": 50.0},
        "latency": {"ratio": {"value": 0.8, "low": 0.79, "high": 0.81}},
        "sites": [{"name": "a", "width": 8, "of": 16}, {"name": "b", "width": 12, "of": 16},
                  {"name": "c", "width": 3, "of": 3}],
    }  # fmt: skip
    (note,) = notes(summary)
    assert note == (
        f"MACs fell to 0.50 of the original, but the measured time only to 0.80: {told}, the channels that ONNX "
        "Runtime computes at once on this CPU; layers that move more data than they compute gain less."
    )
