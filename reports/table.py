"""The final table, and the outcome of a run in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from amc.reports import human


@dataclass(frozen=True)
class Row:
    """One row of the final table, as text. ``ratio`` is final / original; for a metric, the points gained."""

    label: str
    original: str
    after_pruning: str
    final: str
    ratio: str

    def cells(self, trained: bool) -> tuple[str, ...]:
        """All columns but the label. Without training the final network is the pruned one."""
        after = (self.after_pruning, self.final) if trained else (self.final,)
        return self.original, *after, self.ratio


NAMES = {"macs": "MACs", "params": "parameters", "size": "file size", "memory": "peak activations"}
"""The resources that every result contains, and their names in reports."""

Write = Callable[[float | None], str]
"""Formats a figure; None is a figure that was not measured."""

_COSTS: tuple[tuple[str, str, Write], ...] = (
    ("macs", "MACs", human.count),
    ("params", "parameters", human.count),
    ("size", "model.onnx", human.size),
    ("memory", "peak activations", human.size),
)


def is_quantised(site: Mapping[str, Any]) -> bool:
    """Whether a site of result.json holds the bits of a layer's weights."""
    return (site.get("setting") or {}).get("kind") == "bits"


def bits_line(result: Mapping[str, Any]) -> str | None:
    """How many layers have weights of how many bits; None if bits were not searched.

    >>> bits_line({"sites": [{"width": 4, "setting": {"kind": "bits"}}, {"width": 32, "setting": {"kind": "bits"}}]})
    'weights: 1 layer in 4 bits, 1 layer in 32 bits'
    """
    counts = Counter(site["width"] for site in result["sites"] if is_quantised(site))
    parts = [f"{n} {'layer' if n == 1 else 'layers'} in {bits} bits" for bits, n in sorted(counts.items())]
    return f"weights: {', '.join(parts)}" if parts else None


def was_trained(result: Mapping[str, Any]) -> bool:
    """Whether the network was trained after pruning."""
    return _trained(result) is not None


def _trained(result: Mapping[str, Any]) -> str | None:
    """What the trained network is called; None without training."""
    names = [stage["name"] for stage in result["stages"]]
    if "distil" in names:
        return "distilled"
    return "fine-tuned" if any(name.startswith("fine-tun") for name in names) else None


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of `Row.cells`."""
    trained = _trained(result)
    return "original", "pruned", *((trained,) if trained else ()), "ratio"


def final_table(result: Mapping[str, Any]) -> list[Row]:
    """Metrics and costs of the original, pruned and fine-tuned network, from the content of result.json."""
    final = result["final"]
    rows = [_metric_row(result, split) for split in ("search", "test")]
    trained_on = result.get("trained_original")
    if trained_on is not None:
        gain = human.points(human.difference(final.get("test"), trained_on["test"]))
        label = f"{result['metric']}, test split; original trained on"
        rows.append(Row(label, human.percent(trained_on["test"]), human.NOTHING, human.percent(final["test"]), gain))
    costs = [_cost_row(result, key, label, write) for key, label, write in _COSTS]
    if "branches" in final:
        costs.append(_cost_row(result, "branches", "residual branches", human.count))
    label, ratio = f"latency, ONNX Runtime{_threads(result)}", human.ratio(time_ratio(result))
    time = Row(label, *_written(result, "latency_ms", human.milliseconds), ratio)
    return [*rows, time, *costs] if leads_with_time(result) else [*rows, *costs, time]


def _metric_row(result: Mapping[str, Any], split: str) -> Row:
    gained = human.difference(result["final"].get(split), result["original"].get(split))
    label = f"{result['metric']}, {split} split"
    return Row(label, *_written(result, split, human.percent), human.points(gained))


def _cost_row(result: Mapping[str, Any], key: str, label: str, write: Write) -> Row:
    share = human.quotient(result["final"].get(key), result["original"].get(key))
    return Row(label, *_written(result, key, write), human.ratio(share))


def _written(result: Mapping[str, Any], key: str, write: Write) -> tuple[str, str, str]:
    """A figure of the original, the pruned and the final network, as text."""
    original, pruned, final = (write(result[network].get(key)) for network in ("original", "pruned", "final"))
    return original, pruned, final


def time_ratio(result: Mapping[str, Any]) -> float | None:
    """Final / original time: the paired estimate if there is one, else the quotient of the two latencies."""
    if result.get("latency"):
        return float(result["latency"]["ratio"]["value"])
    return human.quotient(result["final"].get("latency_ms"), result["original"].get("latency_ms"))


def leads_with_time(result: Mapping[str, Any]) -> bool:
    """Whether time was limited; then reports tell it first."""
    return "latency" in result["budget"]["limits"]


@dataclass(frozen=True)
class BudgetLine:
    """One limit: what was asked, predicted and found, as text. ``interval``: at 95 %, if it was measured."""

    resource: str
    asked: str
    limit: str
    predicted: str
    found: str
    interval: str
    met: bool
    how: str


def budget_lines(result: Mapping[str, Any]) -> list[BudgetLine]:
    """What was asked, promised and measured for every limit, latency first."""
    lines = sorted(result["proof"], key=lambda line: line["resource"] != "latency")
    return [_budget_line(result, line) for line in lines]


def _budget_line(result: Mapping[str, Any], line: Mapping[str, Any]) -> BudgetLine:
    resource, timed, predicted, interval = line["resource"], line["resource"] == "latency", human.NOTHING, human.NOTHING
    write = human.milliseconds if timed else human.exact
    latency = result.get("latency") or {}
    prediction = latency.get("prediction")
    if timed and isinstance(prediction, Mapping):
        values = [prediction.get(key) for key in ("corrected_ms", "predicted_ms")]
        predicted = write(next((value for value in values if isinstance(value, int | float)), None))
    original_ms = result["original"].get("latency_ms")
    if timed and latency and original_ms is not None and line["how"].startswith("measured"):
        interval = " to ".join(write(original_ms * latency["ratio"][end]) for end in ("low", "high"))
    asked = {"macs": "flops"}.get(resource, resource)
    return BudgetLine(
        f"{NAMES.get(resource, resource)}",
        str(result["budget"]["asked"].get(asked, human.NOTHING)),
        write(line["limit"]),
        predicted,
        write(line["exported"]),
        interval,
        line["met"],
        line["how"],
    )


def budgeted(result: Mapping[str, Any]) -> list[str]:
    """The resources to report first: those with a limit, or MACs."""
    return [name for name in NAMES if name in result["budget"]["limits"]] or ["macs"]


def reported_split(result: Mapping[str, Any]) -> str:
    """The split that the outcome is reported on: test if it was measured, else search."""
    measured = all(result[stage].get("test") is not None for stage in ("original", "final"))
    return "test" if measured else "search"


def outcome(result: Mapping[str, Any]) -> str:
    """The run in one sentence: remaining share of the limited resources, metric, time."""
    original, final, split = result["original"], result["final"], reported_split(result)
    time = time_ratio(result)
    timed = [] if time is None else [f"{time:.2f} of the time"]
    parts = [
        *(timed if leads_with_time(result) else ()),
        *(
            f"{human.short_percent(human.quotient(final[name], original[name]))} of the {NAMES[name]}"
            for name in budgeted(result)
        ),
    ]
    change = human.points(final[split] - original[split]).replace("-", "−")
    parts.append(
        f"{result['metric']} {100 * original[split]:.2f} → {human.percent(final[split])} ({change} points) "
        f"on the {split} split"
    )
    trained_on = result.get("trained_original")
    if trained_on is not None:
        change = human.points(final["test"] - trained_on["test"]).replace("-", "−")
        parts.append(f"{change} points against the original trained on for as long")
    if not leads_with_time(result):
        parts += timed
    missed = not all(line["met"] for line in result["proof"])
    return ", ".join(parts) + ("; the budget is NOT met." if missed else ".")


def _threads(result: Mapping[str, Any]) -> str:
    if not result.get("latency"):
        return ""
    threads = result["latency"]["threads"]
    return f", {threads} thread{'' if threads == 1 else 's'}"
