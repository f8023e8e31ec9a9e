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

budgets = [0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7]
curves = {"same share everywhere": [], "searched, 8 evaluations": []}
for budget in budgets:
    for label, search, evaluations in zip(curves, (uniform, hybrid), (1, 8), strict=True):
        part = problem.under({"macs": budget * full})
        search(part, evaluations, 0)
        best = part.best(1)[0]
        curves[label].append((best.costs["macs"] / full, best.loss, best.metric))

# %%
# Left is what the search minimises: the mean squared distance of the logits from the original's. It tells policies
# apart long before accuracy does, which moves in steps of 0.3 points on the 349 images of this search split.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for (label, points), marker in zip(curves.items(), "so", strict=True):
    macs, distances, accuracies = zip(*points, strict=True)
    left.plot(macs, distances, marker=marker, label=label)
    right.plot(macs, accuracies, marker=marker, label=label)
left.set_yscale("log")
left.set_ylabel("squared distance of logits")
right.set_ylabel("accuracy before training")
for axes in (left, right):
    axes.set_xlabel("MACs, as a share of the original")
right.legend(frameon=False)
plt.show()
