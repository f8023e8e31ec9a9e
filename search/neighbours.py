"""Neighbours of a policy: some sites moved by a few positions, then adjusted to the budget."""

from __future__ import annotations

import numpy as np

from amc.space.budget import Space
from amc.space.sites import Choice


def repair(space: Space, choice: Choice) -> Choice:
    """Adjust a policy to the budget: widen it where the budget allows, or scale it down if it is over.

    >>> from amc.envs.toy import toy_problem
    >>> space = toy_problem(share=0.5, sites=2)[0].space
    >>> space.fits([(8, 8)]).tolist(), space.fits([repair(space, (8, 8))]).tolist()
    ([False], [True])
    """
    if bool(space.fits([choice])[0]):
        return space.fill(choice, space.sizes_of(choice).astype(np.float64))
    return space.fit(space.shares_of(choice))


def neighbour(space: Space, choice: Choice, rng: np.random.Generator, moves: int = 2) -> Choice:
    """A policy with up to ``moves`` sites moved by one to three positions, repaired."""
    moved = space.positions(choice)
    for site in rng.choice(len(moved), min(moves, len(moved)), replace=False):
        step = int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)
        moved[site] = np.clip(moved[site] + step, 0, space.lengths[site] - 1)
    return repair(space, space.choice(moved))


def crossed(space: Space, first: Choice, second: Choice, rng: np.random.Generator) -> Choice:
    """Uniform crossover of two policies, repaired."""
    mixed = np.where(rng.random(len(first)) < 0.5, space.positions(first), space.positions(second))
    return repair(space, space.choice(mixed))


def narrowed(space: Space, choice: Choice, site: int, step: int) -> Choice:
    """Move one site back by ``step`` positions, and widen the others by what that frees.

    If the earlier setting costs more, as a narrower site may on a device, the other sites are narrowed instead.
    """
    places, wanted = space.positions(choice), space.sizes_of(choice).astype(np.float64)
    places[site], wanted[site] = max(0, places[site] - step), 0.0
    moved = space.choice(places)
    return space.fill(moved, wanted) if bool(space.fits([moved])[0]) else space.fit(space.shares_of(moved))
