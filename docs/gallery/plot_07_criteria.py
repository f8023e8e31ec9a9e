"""
Which channels go?
==================

A policy says how many channels a site keeps. A criterion says which.
"""

# %%
# Every criterion ranks the same network's channels. ``reconstruct`` re-solves the layers that read them by least
# squares after pruning; here it is switched off, so that the choice alone is seen.

import matplotlib.pyplot as plt

import amc
from amc.search import load_searcher

SHARES = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
uniform = load_searcher("uniform")


def accuracies(criterion, reconstruct):
    """Accuracy of the uniform policy at several budgets, before training."""
    config = {"search": {"criterion": criterion, "reconstruct": reconstruct}, "data": {"calibration": 256}}
    problem = amc.make_problem(budget=0.9, config=config)
    full, found = problem.space.costs(problem.space.full)["macs"], []
    for share in SHARES:
        part = problem.under({"macs": share * full})
        uniform(part, 1, 0)
        found.append(part.best(1)[0].metric)
    return found


criteria = ["obs", "l1", "taylor", "fpgm", "random"]
alone = {criterion: accuracies(criterion, False) for criterion in criteria}

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for criterion, found in alone.items():
    axes.plot(SHARES, found, marker="o", markersize=4, label=criterion)
axes.set_xlabel("limit on MACs, as a share of the original")
axes.set_ylabel("accuracy before training, no reconstruction")
axes.legend(frameon=False)
plt.show()

# %%
# With reconstruction, even random channels are not far behind: what the lost channels computed is to a large part
# a linear function of the others. ``amc list criteria`` shows all criteria; :doc:`/benchmarks/criteria` compares them.

again = {criterion: accuracies(criterion, True) for criterion in ("obs", "random")}
print("share of MACs       ", *(f"{share:6.2f}" for share in SHARES))
for criterion, found in again.items():
    print(f"{criterion:6} alone        ", *(f"{value:6.3f}" for value in alone[criterion]))
    print(f"{criterion:6} reconstructed", *(f"{value:6.3f}" for value in found))
