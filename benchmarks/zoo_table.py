"""Write the results of the zoo as a Markdown page."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from benchmarks.zoo_networks import names

SHARE = 0.5
"""Share of the MACs that every network is pruned to."""


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    records = list(results.values())
    states = Counter(r.get("code") for r in records)
    lines = [
        "# Tested networks",
        "",
        "Written by `python -m benchmarks.zoo`; every number is in `benchmarks/results/zoo.jsonl`.",
        "",
        "Each network has random weights and gets the smallest images that it accepts. It must pass these steps:",
        "",
        "1. Inspect: find the sites.",
        f"2. Prune by a random and by a uniform policy for {100 * SHARE:.0f} % of the MACs. At least a fifth of every",
        "   site stays.",
        "3. Run forward at two batch sizes. The MACs are as predicted. The outputs equal those of the original network",
        "   when nothing reads the removed channels.",
        "4. Run one training step.",
        "5. For the uniform policy: export to ONNX, compare with ONNX Runtime, save and load the bundle.",
        "",
        "The columns:",
        "",
        "- *least*: the MACs that remain if a fifth of every site is kept",
        "- *masked = pruned*: largest difference in step 3, relative to the largest output",
        "- *ONNX*: largest difference between torch and ONNX Runtime, relative to the largest output",
        "- *inspect*, *all*: CPU seconds on one shared core",
        "- *not pruned*: sites that are refused, with the reason",
        "- *TP*: Torch-Pruning's `MagnitudePruner` with half of the channels, used as in its examples. It passes if",
        "  the pruned network runs, trains one step, and has at most half of its MACs by Torch-Pruning's own count.",
        "  The figure is the share of the MACs that remains.",
        "",
        "A run of amc exports the original first. An original of more than 2 GiB (`regnet_y_128gf`, `vit_h_14`) does",
        "not fit into a single ONNX file, so a run refuses it before the search. The rows of these two networks",
        "describe what was done with the pruned network.",
        f"The {len(records)} rows come from {len(states)} states of the code (`code` in the records is a fingerprint",
        f"of the code that inspects and prunes); {states.most_common(1)[0][1] if states else 0} rows are of one state.",
        "",
        "| library | networks | tried | amc: all steps | all but ONNX | failed or refused | Torch-Pruning |",
        "|---|---|---|---|---|---|---|",
        *(_summary(library, records) for library in ("torchvision", "timm")),
        "",
        "| network | pixels | sites | MACs left | least | masked = pruned | ONNX | inspect | all | not pruned | TP |",
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
    """Every reason with the number of sites that it excludes. The network's output is left out."""
    counts: dict[str, int] = {}
    for _, reason in found.get("refused", []):
        short = re.sub(r"[\w.]*\d[\w.]* has (\d+) groups", r"\1 groups", reason)
        counts[short] = counts.get(short, 0) + 1
    counts.pop("it is the network's output", None)
    return "; ".join(f"{count} × {reason}" for reason, count in counts.items())
