"""The zoo's results as a table."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from benchmarks.zoo_networks import names

SHARE = 0.5
"""Of the MACs, that every network is to be cut to."""


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    records = list(results.values())
    states = Counter(r.get("code") for r in records)
    lines = [
        "# Tested networks",
        "",
        "Written by `python -m benchmarks.zoo`; every number is in `benchmarks/results/zoo.jsonl`.",
        "",
        "For each network, with random weights and the smallest images that it takes: inspect; a random and a uniform",
        f"policy for {100 * SHARE:.0f} % of the MACs (at least a fifth of every site kept); prune; forward",
        "at two batch sizes; MACs as predicted; the pruned network computes what the whole one does when nothing",
        "listens to the channels that went; one training step; then, for the uniform policy, ONNX, parity on ONNX",
        "Runtime, and the bundle saved and loaded. *Torch-Pruning* (TP): its `MagnitudePruner` with half of the",
        "channels, as its examples use it: the pruned network runs, trains one step, and has at most half of its MACs,",
        "as it counts them. *Least*: the MACs that remain when a fifth of every site is kept; *masked = pruned* and",
        "*ONNX*: largest differences, of the largest output. Times are CPU seconds on one shared core.",
        "A run also exports the original first: those of more than 2 GiB (`regnet_y_128gf`, `vit_h_14`) are no single",
        "ONNX file and are refused there, before the search; their rows are of what is done with pruned networks.",
        f"The {len(records)} rows are of {len(states)} states of the code (`code` in the records is the fingerprint of",
        f"what inspects and cuts), {states.most_common(1)[0][1] if states else 0} of them of one.",
        "",
        "| library | networks | tried so far | amc: through everything | all but ONNX | not | Torch-Pruning |",
        "|---|---|---|---|---|---|---|",
        *(_summary(library, records) for library in ("torchvision", "timm")),
        "",
        "| network | pixels | sites | MACs left | least | masked = pruned | ONNX | inspect | all | not cut, and why"
        " | TP |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_line, records),
    ]
    return "\n".join(lines) + "\n"


def _summary(library: str, records: list[dict[str, Any]]) -> str:
    mine = [r for r in records if r["name"].startswith(library)]
    good = sum(r["amc"]["step"] == "done" for r in mine)
    quick = sum(r["amc"]["step"] == "quick" for r in mine)
    tried = [r for r in mine if "torch-pruning" in r]
    other = sum(r["torch-pruning"]["step"] == "done" for r in tried)
    share = f"{other} of {len(tried)} ({100 * other / len(tried):.1f} %)" if tried else ""
    every = sum(n.startswith(library) for n in names())
    return f"| {library} | {every} | {len(mine)} | {good} | {quick} | {len(mine) - good - quick} | {share} |"


def _line(record: dict[str, Any]) -> str:
    a, other = record["amc"], record.get("torch-pruning", {})
    cells = [record["name"], a.get("size", ""), a.get("sites", "")]
    if a["step"] in ("done", "quick"):
        cells += [f"{100 * a['share']:.1f} %", f"{100 * a['least']:.0f} %", f"{a['masked']:.0e}"]
        cells.append(f"{a['parity']:.0e}" if "parity" in a else "not run")
    else:
        what = a.get("reason") or f"{a['step']}: {a.get('error', '')}"
        cells += [f"**{'refused' if a['step'] == 'refused' else 'failed'}**: {what}", "", "", ""]
    cells += [f"{a['inspect']:.1f} s" if "inspect" in a else "", f"{a['seconds']:.0f} s", _reasons(a)]
    failed = f"{other['step']}: {other.get('error', '')}" if other else "not run"
    cells.append(f"{100 * other['share']:.0f} %" if "share" in other else failed)
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def _reasons(found: dict[str, Any]) -> str:
    """Every reason, with how many layers it holds back; the logits are not worth a word."""
    counts: dict[str, int] = {}
    for _, reason in found.get("refused", []):
        short = re.sub(r"[\w.]*\d[\w.]* has (\d+) groups", r"\1 groups", reason)
        counts[short] = counts.get(short, 0) + 1
    counts.pop("it is the network's output", None)
    return "; ".join(f"{count} × {reason}" for reason, count in counts.items())
