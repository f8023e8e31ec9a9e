"""
Accuracy against measured time
==============================

MACs are a proxy. Every run measures the exported network on ONNX Runtime beside the original, and says how sure it is.
"""

# %%
# Two budgets, without training. ``latency`` in the summary has times, and their ratio with a 95 % interval.

import matplotlib.pyplot as plt

import amc


def measured(share):
    """The measured result at ``share`` of the MACs."""
    config = amc.Config(
        budget={"flops": share},
        data={"search": 200, "calibration": 256},
        search={"searcher": "allocate", "evaluations": 1, "refine": 1},
        finetune={"epochs": 0, "candidates": 1},
        threads=1,
    )
    return amc.run(config).summary


summaries = [measured(share) for share in (0.5, 0.12)]
for summary in summaries:
    macs = summary["final"]["macs"] / summary["original"]["macs"]
    ratio = summary["latency"]["ratio"]
    print(f"{macs:.3f} of the MACs take {ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) of the time")

# %%
# Time falls less than MACs do: a small network spends much of its time on starting operators, and a vector unit
# computes 12 channels no faster than 16. If time is what counts, limit it: ``budget={"latency": 0.5}`` profiles this
# machine first (about a minute), predicts the time of every policy, and verifies it at the end.

original = summaries[0]["original"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
accuracies = [original["test"], *(summary["final"]["test"] for summary in summaries)]
left.plot([1, *(s["final"]["macs"] / original["macs"] for s in summaries)], accuracies, "o-")
left.set_xlabel("MACs, as a share of the original")
left.set_ylabel("accuracy on the test split, no training")
ratios = [summary["latency"]["ratio"] for summary in summaries]
values = [ratio["value"] for ratio in ratios]
spread = [[r["value"] - r["low"] for r in ratios], [r["high"] - r["value"] for r in ratios]]
right.plot([1, *values], accuracies, "o-")
right.errorbar(values, accuracies[1:], xerr=spread, fmt="none", capsize=3, color="black")
right.set_xlabel("measured time, as a share of the original")
for axes in (left, right):
    axes.set_xlim(0, 1.05)
left.set_ylim(0.9, 1)
plt.show()
