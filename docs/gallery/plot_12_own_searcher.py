"""
A searcher of your own
======================

A searcher is a function of a problem, a number of evaluations and a seed. That is the whole contract.
"""

# %%
# This one climbs: it changes the proportions of the best policy a little, and lets the space scale them to the budget.
# ``problem.space.fit`` takes any proportions and returns a legal policy within every limit, so a searcher never has to
# think about costs.

import matplotlib.pyplot as plt
import numpy as np

import amc
from amc.search import load_searcher
from amc.testing import check_search


def climb(problem, evaluations, seed, *, step=0.3):
    rng = np.random.default_rng(seed)
    shares = np.ones(len(problem.space.names))
    best = problem.evaluate(problem.space.fit(shares))
    for _ in range(evaluations - 1):
        changed = shares * np.exp(step * rng.standard_normal(len(shares)))
        found = problem.evaluate(problem.space.fit(changed))
        if found.reward > best.reward:
            shares, best = changed, found


# %%
# The contract suite runs it on problems with known answers: it must be deterministic, and resume from a journal.

check_search(climb)

# %%
# Then let it compete. On the command line, the same function is ``--searcher my_searcher.py:climb``, and its keyword
# parameter is ``--searcher-option step=0.2``.

problem = amc.make_problem(budget=0.35)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for label, search in {"climb": climb, "random": load_searcher("random"), "hybrid": load_searcher("hybrid")}.items():
    own = problem.under(problem.space.limits)
    search(own, 24, 0)
    losses = np.minimum.accumulate([evaluation.loss for evaluation in own.evaluations])
    axes.plot(np.arange(1, len(losses) + 1), losses, drawstyle="steps-post", label=label)
axes.set_xlabel("distinct policies evaluated")
axes.set_ylabel("best squared distance of logits so far")
axes.legend(frameon=False)
plt.show()
