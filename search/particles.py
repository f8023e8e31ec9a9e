"""A particle filter (Anwar, Hwang & Sung 2015, arXiv:1512.08571): sequential importance resampling of policies.

A particle is a policy here, and a mask of connections in the paper. Its weight grows with its reward. In each round,
particles are resampled by their weights and perturbed, less in every round. See docs/deviations.md.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from amc.evaluation.problem import Problem
from amc.evaluation.reward import Evaluation
from amc.runtime.registry import about


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    particles: Annotated[int, about("largest number of particles", ge=2)] = 20,
    rounds: Annotated[int, about("least number of rounds, if the evaluations suffice", ge=1)] = 5,
    first_spread: Annotated[
        float, about("first standard deviation of a perturbation, in a share's logarithm", gt=0)
    ] = 0.4,
    last_spread: Annotated[float, about("last standard deviation of it", gt=0)] = 0.05,
) -> None:
    """Start with the uniform policy and random ones; then rounds of resampling and perturbation."""
    rng, space = np.random.default_rng(seed), problem.space
    sites, count = len(space.names), max(2, min(particles, evaluations // rounds))
    alive: list[Evaluation] = []
    for number in range(min(count, evaluations)):
        shares = np.ones(sites) if number == 0 else rng.uniform(0.1, 1.0, sites)
        alive.append(problem.evaluate(space.fit(shares)))
    spent = len(alive)
    while spent < evaluations:
        done = (spent - count) / max(1, evaluations - count)
        spread = first_spread * (last_spread / first_spread) ** done
        drawn = resample(_weights(alive), rng)[: evaluations - spent]
        alive = [
            problem.evaluate(space.fit(space.shares_of(alive[i].choice) * np.exp(rng.normal(0, spread, sites))))
            for i in drawn
        ]
        spent += len(alive)


def _weights(particles: list[Evaluation]) -> NDArray[np.float64]:
    """Normalised importance weights: a standard deviation of rewards is a factor of e; failed particles get 0."""
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
