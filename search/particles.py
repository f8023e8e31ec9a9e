"""A particle filter (Anwar, Hwang & Sung 2015, arXiv:1512.08571): sequential importance resampling of policies.

A particle is a policy here (in the paper, a mask of connections). Its weight grows with its reward; in each round
particles are drawn anew by their weights and disturbed, less from round to round. See docs/deviations.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation

_PARTICLES, _ROUNDS = 20, 5  # at most; at least, where there are evaluations for it
_SPREAD = (0.4, 0.05)  # deviation of the disturbance at first and last, in the logarithm of a share


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Begin with the uniform policy and random ones; then rounds of resampling and disturbing."""
    rng, space = np.random.default_rng(seed), problem.space
    sites, count = len(space.names), max(2, min(_PARTICLES, evaluations // _ROUNDS))
    particles: list[Evaluation] = []
    for number in range(min(count, evaluations)):
        shares = np.ones(sites) if number == 0 else rng.uniform(0.1, 1.0, sites)
        particles.append(problem.evaluate(space.fit(shares)))
    spent = len(particles)
    while spent < evaluations:
        done = (spent - count) / max(1, evaluations - count)
        spread = _SPREAD[0] * (_SPREAD[1] / _SPREAD[0]) ** done
        drawn = resample(_weights(particles), rng)[: evaluations - spent]
        particles = [
            problem.evaluate(space.fit(space.shares_of(particles[i].choice) * np.exp(rng.normal(0, spread, sites))))
            for i in drawn
        ]
        spent += len(particles)


def _weights(particles: list[Evaluation]) -> NDArray[np.float64]:
    """Normalised importance weights: one deviation of the rewards makes a factor of e; failed particles get none."""
    rewards = np.array([p.reward for p in particles])
    good = np.isfinite(rewards)
    if not good.any():
        return np.full(len(particles), 1 / len(particles))
    spread = float(rewards[good].std())
    weights = np.exp((rewards - rewards[good].max()) / spread) if spread > 0 else good.astype(np.float64)
    return np.asarray(weights / weights.sum())


def resample(weights: NDArray[np.float64], rng: np.random.Generator) -> list[int]:
    """Systematic resampling: particle i is drawn ⌊n w_i⌋ or ⌈n w_i⌉ times."""
    marks = (rng.random() + np.arange(len(weights))) / len(weights)
    drawn = np.minimum(np.searchsorted(np.cumsum(weights), marks), len(weights) - 1)
    return [int(i) for i in rng.permutation(drawn) if math.isfinite(weights[i])]
