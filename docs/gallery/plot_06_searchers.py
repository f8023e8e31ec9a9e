"""
Searchers at equal cost
=======================

All searchers see the same problem and follow the same contract, so they can be compared at the same number of
evaluations.
"""

# %%
# The score is the search's own: the mean squared distance of the pruned network's logits from the original's. Lower is
# better.

import matplotlib.pyplot as plt
import numpy as np

import amc
from amc.search import load_searcher

problem = amc.make_problem(budget=0.35)
EVALUATIONS = 24
names = ["hybrid", "spdy", "tpe", "evolution", "random", "amc"]

# %%
# A searcher is a function of a problem, a number of evaluations and a seed. ``problem.under`` with the same limits
# gives each one a problem of its own.

best = {}
for name in names:
    own = problem.under(problem.space.limits)
    load_searcher(name)(own, EVALUATIONS, 0)
    losses = [evaluation.loss for evaluation in own.evaluations]
    best[name] = np.minimum.accumulate(losses)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, losses in best.items():
    axes.plot(np.arange(1, len(losses) + 1), losses, drawstyle="steps-post", label=name)
axes.set_xlabel("distinct policies evaluated")
axes.set_ylabel("best squared distance of logits so far")
axes.legend(frameon=False, ncols=2)
plt.show()

# %%
# One seed on a tiny network says little. :doc:`/benchmarks/search` has the comparison on ResNet-20 and ResNet-56 with
# several seeds. The searchers that know each site's estimated error (``hybrid``, ``spdy``) start near where the others
# end.

for name, losses in sorted(best.items(), key=lambda item: item[1][-1]):
    print(f"{name:10} {losses[-1]:.4f}")
