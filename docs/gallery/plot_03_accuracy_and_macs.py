"""
Accuracy against MACs
=====================

How small can the network be? One calibration serves all budgets.
"""

# %%
# ``problem.under`` is the same problem under another limit. Each budget gets the uniform policy, which keeps the same
# share of every site, and the best of eight policies of the default searcher. Nothing is trained.

import matplotlib.pyplot as plt

import amc
from amc.search import load_searcher

problem = amc.make_problem(budget=0.9)
full = problem.space.costs(problem.space.full)["macs"]
uniform, hybrid = load_searcher("uniform"), load_searcher("hybrid")

budgets = [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8]
curves = {"same share everywhere": [], "searched, 8 evaluations": []}
for budget in budgets:
    for label, search, evaluations in zip(curves, (uniform, hybrid), (1, 8), strict=True):
        part = problem.under({"macs": budget * full})
        search(part, evaluations, 0)
        best = part.best(1)[0]
        curves[label].append((best.costs["macs"] / full, best.metric))

# %%
# At half of the MACs the choice of the policy hardly matters for this network; at a fifth it does.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (label, points), marker in zip(curves.items(), "so", strict=True):
    axes.plot(*zip(*points, strict=True), marker=marker, label=label)
axes.set_xlabel("MACs, as a share of the original")
axes.set_ylabel("accuracy before training")
axes.legend(frameon=False)
plt.show()
