"""
What reconstruction recovers
============================

A pruned layer's neighbours were trained for inputs that are gone. Solving them again by least squares takes
milliseconds and no labels, and recovers most of the accuracy before any training.
"""

# %%
# ``reconstruct`` switches it on and off. ``sequential_reconstruction`` says on which inputs: those in the pruned
# network (``search``), or those in the original (``off``), which are collected once.

import matplotlib.pyplot as plt

import amc
from amc.search import load_searcher

SHARES = [0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
VARIANTS = {
    "none": {"reconstruct": False},
    "on the original's inputs": {"sequential_reconstruction": "off"},
    "on the pruned network's inputs": {"sequential_reconstruction": "search"},
}
uniform = load_searcher("uniform")

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for label, search in VARIANTS.items():
    problem = amc.make_problem(budget=0.9, config={"search": search, "data": {"calibration": 256}})
    full, found = problem.space.costs(problem.space.full)["macs"], []
    for share in SHARES:
        part = problem.under({"macs": share * full})
        uniform(part, 1, 0)
        found.append(part.best(1)[0].metric)
    axes.plot(SHARES, found, marker="o", markersize=4, label=label)
    print(f"{label:31}", *(f"{accuracy:.3f}" for accuracy in found))
axes.set_xlabel("limit on MACs, as a share of the original")
axes.set_ylabel("accuracy before training")
axes.legend(frameon=False, title="reconstruction")
plt.show()
