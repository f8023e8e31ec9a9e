"""The try-and-learn agents of Huang et al. 2018 (arXiv:1801.07365): REINFORCE over keep-or-drop decisions.

Every site has an agent, which keeps each of the K - 1 steps between the site's first and last setting with
probability p = σ(θ). With k steps kept, ∂ log P / ∂θ = k - (K - 1) p. In the paper, agents observe the weights of
filters and decide about each filter, one layer after another. Here agents have no observation and act together, and
the criterion chooses the channels. See docs/deviations.md.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.space.sites import Choice

Floats = NDArray[np.float64]

_SURE = 3.0  # bound of |θ|, so that no agent stops exploring


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    tries: Annotated[int, about("policies per update of the agents", ge=1)] = 5,
    rate: Annotated[float, about("learning rate", gt=0)] = 0.6,
) -> None:
    """Propose the uniform policy; then repeat: sample a few policies and update the agents."""
    rng, space = np.random.default_rng(seed), problem.space
    steps = (space.lengths - 1).astype(np.float64)
    uniform = space.fit(np.ones(len(steps)))
    places = space.positions(uniform)
    theta = np.clip(_logit((places + 0.5) / (steps + 1)), -_SURE, _SURE)
    usual = problem.evaluate(uniform).reward
    spent = 1
    while spent < evaluations:
        drawn = min(tries, evaluations - spent)
        kept = rng.binomial(steps.astype(int), _sigmoid(theta), (drawn, len(steps)))
        rewards = np.array([problem.evaluate(_policy(problem, row)).reward for row in kept])
        spent += drawn
        theta = _learn(theta, steps, kept, rewards, usual, rate)
        usual = float(np.mean(rewards[np.isfinite(rewards)])) if np.isfinite(rewards).any() else usual


def _policy(problem: Problem, kept: NDArray[np.int64]) -> Choice:
    """The policy for the kept steps, scaled to the budget."""
    space = problem.space
    return space.fit(space.sizes_at(kept) / space.full_sizes)


def _learn(theta: Floats, steps: Floats, kept: NDArray[np.int64], rewards: Floats, usual: float, rate: float) -> Floats:
    """One policy-gradient step on advantages in units of their standard deviation."""
    known = [r for r in (*rewards.tolist(), usual) if math.isfinite(r)]
    if not known:
        return theta
    rewards = np.where(np.isfinite(rewards), rewards, min(known))  # a failed policy counts like the worst one
    baseline = usual if math.isfinite(usual) else float(rewards.mean())
    gain = rewards - baseline
    spread = float(np.sqrt(np.mean(gain**2)))
    if not (spread > 0 and math.isfinite(spread)):
        return theta
    p = _sigmoid(theta)
    noise = np.sqrt(np.maximum(steps, 1) * p * (1 - p))  # otherwise sites with many settings would learn faster
    gradient = ((gain / spread)[:, None] * (kept - steps * p) / noise).mean(0)
    return np.asarray(np.clip(theta + rate * gradient, -_SURE, _SURE))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _logit(p: Floats) -> Floats:
    return np.asarray(np.log(p / (1 - p)))
