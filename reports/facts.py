"""How a run was made, as pairs of name and text: all that is needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc.reports import human
from amc.reports.read import SearchHistory


def facts(result: Mapping[str, Any], journal: SearchHistory) -> list[tuple[str, str]]:
    """Model, data, search, seeds and environment, one pair each."""
    environment, data = result["environment"], result["data"]
    splits = [(name, split) for name, split in data["splits"].items() if isinstance(split, dict)]
    lines = [
        ("model", f"{result['model']['name']}, fingerprint {result['model']['fingerprint']}"),
        ("data", data["source"]),
        *((f"{name} split", _split(split)) for name, split in splits),
        ("budget asked", _pairs(result["budget"]["asked"])),
        ("search", _search(result["search"], journal)),
        ("latency model", _latency(result.get("latency") or {})),
        ("seeds", _pairs({"run": result["config"].get("seed"), "splits": data["splits"].get("seed")})),
        (
            "machine",
            _pairs({key: value for key, value in environment.items() if not isinstance(value, dict)}),
        ),
        ("versions", _pairs(environment["versions"])),
    ]
    return [(name, text) for name, text in lines if text]


def _search(search: Mapping[str, Any], journal: SearchHistory) -> str:
    failed = f" ({journal.failed} failed)" if journal.failed else ""
    recalibrated = "on" if search.get("recalibrate") else "off"
    return (
        f"{search['searcher']}, {search['evaluations']} evaluations{failed}, "
        f"criterion {search['criterion']}, reward {search['reward']}, recalibration {recalibrated}"
    )


def _latency(latency: Mapping[str, Any]) -> str:
    """The accuracy of the predictions, if latency was limited."""
    prediction = latency.get("prediction")
    if not isinstance(prediction, dict):
        return ""
    parts, error = [str(prediction.get("model"))], prediction.get("error")
    if isinstance(error, dict):
        mean, worst = (human.percent(error.get(key)) for key in ("mean", "worst"))
        parts.append(f"fitted on {prediction.get('networks')} networks, cross-validated error {mean}, worst {worst}")
    if prediction.get("measured_error") is not None:
        off = human.percent(prediction["measured_error"])
        parts.append(
            f"{prediction.get('measured_policies')} policies measured in the search, mean prediction error {off}"
        )
    if prediction.get("corrections"):
        parts.append(f"corrected {len(prediction['corrections'])} times")
    return "; ".join(parts)


def _split(split: Mapping[str, Any]) -> str:
    return f"{split.get('count', '?')} samples, digest {split.get('digest', '?')}"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
