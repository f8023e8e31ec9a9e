"""
How much does each layer lose?
==============================

Before a single policy is evaluated, amc estimates what every site would lose at every width. This is what the default
searcher starts from.
"""

# %%
# A *problem* is what searchers see: sites with their legal settings, exact costs, and a score for every policy.
# ``amc.make_problem`` makes it; it follows the channels and calibrates them, which takes seconds here.

import matplotlib.pyplot as plt

import amc

problem = amc.make_problem(budget=0.5)
space = problem.space

# %%
# ``site_error`` needs no evaluation: it follows from the inputs of the layers that read the channels, and from the
# gradient of the original's output. Errors are relative to each other.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for number, site in enumerate(space.sites):
    shares = [size / site.sizes[-1] for size in site.sizes]
    errors = [problem.site_error(number, setting) for setting in site.settings]
    axes.plot(shares, errors, marker="o", markersize=4, label=f"{site.name} ({site.sizes[-1]} channels)")
axes.set_xlabel("share of channels that is kept")
axes.set_ylabel("estimated error of the site")
axes.set_yscale("symlog", linthresh=1e-3)
axes.legend(frameon=False, fontsize=8)
plt.show()

# %%
# A layer is worth pruning where it is cheap to lose **and** expensive to keep, so the errors are half of the story.
# This is how many MACs the network saves if one site alone is narrowed to its smallest setting:

full = space.costs(space.full)["macs"]
for number, site in enumerate(space.sites):
    policy = (*space.full[:number], site.settings[0], *space.full[number + 1 :])
    saved = 1 - space.costs(policy)["macs"] / full
    print(
        f"{site.name:16} {saved:6.1%} of the MACs, estimated error {problem.site_error(number, site.settings[0]):.3f}"
    )

# %%
# The allocator puts both together. It finds the policy with the least estimated error within the budget, exactly:

from amc.search import load_searcher

load_searcher("allocate")(problem, 1, 0)
(found,) = problem.evaluations
print(dict(zip(space.names, found.choice, strict=True)))
print(f"accuracy before any training: {found.metric:.4f}, {found.costs['macs'] / full:.3f} of the MACs")
