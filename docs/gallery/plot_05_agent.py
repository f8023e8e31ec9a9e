"""
Watch the agent of the AMC paper learn
======================================

AMC (He et al. 2018) lets a DDPG agent walk through the network, one site per step. It sees eleven features of a site,
and answers with the share of channels to keep. The reward comes after the last site.
"""

# %%
# ``amc/Pruning-v0`` is that environment for Gymnasium. Any action leads to a policy within the budget.

import gymnasium
import matplotlib.pyplot as plt
import numpy as np

import amc
from amc.search import load_searcher

problem = amc.make_problem(budget=0.4, config={"search": {"reward": "error"}})
env = gymnasium.make("amc.envs:amc/Pruning-v0", problem=problem, render_mode="rgb_array")
observation, info = env.reset(seed=0)
print(observation.round(2))

# %%
# One episode, with an agent that always wants to keep 60 % of a site:

done = False
while not done:
    observation, reward, done, truncated, info = env.step(np.array([0.6], np.float32))
    print(f"kept {info['share']:.2f}")
print(f"reward {reward:.4f}: minus the error, {1 - info['evaluation'].metric:.2%}")
plt.figure(figsize=(5, 2))
plt.imshow(env.render())
plt.axis("off")
plt.show()

# sphinx_gallery_thumbnail_number = 2

# %%
# The agent itself is the searcher ``amc``. The first quarter of its episodes is random; after that, its noise decays. A
# policy that was evaluated before costs nothing and is not listed again.

learned = problem.under(problem.space.limits)  # the same problem, without the episode above
load_searcher("amc")(learned, 120, 0)
rewards = np.array([evaluation.reward for evaluation in learned.evaluations])
kept = np.array([learned.space.sizes_of(evaluation.choice) for evaluation in learned.evaluations]) / learned.space.full

figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), layout="constrained", sharex=True, height_ratios=[3, 2])
top.plot(rewards, ".", color="#8a94a6", label="reward of a policy")
top.plot(np.maximum.accumulate(rewards), color="#2f5fc4", label="best so far")
window = np.convolve(rewards, np.ones(15) / 15, "valid")
top.plot(np.arange(len(window)) + 7, window, color="#c4562f", label="mean of 15")
top.set_ylabel("reward (minus the error)")
top.legend(frameon=False)
shown = bottom.imshow(kept.T, aspect="auto", vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
bottom.set_yticks(range(len(learned.space.names)), learned.space.names, fontsize=8)
bottom.set_xlabel("distinct policies, in the order of their proposal")
figure.colorbar(shown, ax=bottom, label="kept")
plt.show()

# %%
# Each column below is a policy. At first they are random; the more the noise decays, the more alike they become: the
# agent has learned which sites to keep wide, and the mean of its rewards rises. In so small a problem a random policy
# can be the best one all the same.
