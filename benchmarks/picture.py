"""The picture in the README: one row of the table in docs/results.md, before and after.

python -m benchmarks.picture        # writes docs/before-after.svg
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
TABLE, PICTURE = ROOT / "docs/results.md", ROOT / "docs/before-after.svg"
ROW = "resnet56, CIFAR-10 as JPEG"
GREY, BLUE, INK = "#c3c9d6", "#2f5fc4", "#1d2433"


def measured(table: str, name: str) -> dict[str, float]:
    """The row of a network in the table, by the names of the columns."""
    rows = [[cell.strip(" *") for cell in line.strip("| \n").split("|")] for line in table.splitlines() if "|" in line]
    head = next(row for row in rows if row[0] == "network, data")
    row = next(row for row in rows if row[0] == name)
    return dict(zip(head[1:], map(float, row[1:]), strict=True))


def main() -> None:
    row = measured(TABLE.read_text(encoding="utf-8"), ROW)
    bars = {
        "test accuracy": (row["accuracy"], row["fine-tuned"], "{:.2f} %"),
        "MACs": (100.0, 100 * row["MACs"], "{:.0f} %"),
        "model.onnx": (100.0, 100 * row["model.onnx"], "{:.0f} %"),
        "measured time": (100.0, 100 * row["time"], "{:.0f} %"),
    }
    mpl.rcParams["svg.hashsalt"] = "amc"
    mpl.rcParams["font.size"] = 11
    figure, panels = plt.subplots(1, 4, figsize=(9, 1.55), layout="constrained")
    for axes, (title, (before, after, shown)) in zip(panels, bars.items(), strict=True):
        axes.barh(["before", "after"], [before, after], color=[GREY, BLUE], height=0.72)
        for place, value, colour in ((0, before, INK), (1, after, "white")):
            axes.text(3, place, shown.format(value), va="center", color=colour)
        axes.set(xlim=(0, 100), xticks=[], yticks=[0, 1] if axes is panels[0] else [])
        axes.invert_yaxis()
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
