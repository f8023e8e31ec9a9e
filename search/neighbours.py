"""Policies next to a policy: one or a few sites moved by steps, brought back to the budget."""

from __future__ import annotations

import numpy as np

from amc.space.budget import Space
from amc.space.policy import Choice


def shares_of(space: Space, choice: Choice) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The share of every site that a policy keeps ``[S]``."""
    return np.asarray(choice, np.float64) / np.asarray(space.full, np.float64)


def repair(space: Space, choice: Choice) -> Choice:
    """The policy itself, widened where the budget allows, or scaled down where it is over it."""
    if bool(space.fits([choice])[0]):
        return space.fill(choice, np.asarray(choice, np.float64))
    return space.fit(shares_of(space, choice))


def neighbour(space: Space, choice: Choice, rng: np.random.Generator, moves: int = 2) -> Choice:
    """A policy with up to ``moves`` sites moved by one to three steps, repaired."""
    moved = list(choice)
    for site in rng.choice(len(moved), min(moves, len(moved)), replace=False):
        settings = space.settings[site]
        step = int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)
        moved[site] = settings[int(np.clip(settings.index(moved[site]) + step, 0, len(settings) - 1))]
    return repair(space, tuple(moved))


def narrowed(space: Space, choice: Choice, site: int, step: int) -> Choice:
    """The policy with one site narrowed by ``step`` and the others widened by what that frees.

    Where a narrower site costs more, as it may on a device, the others give way instead.
    """
    settings = space.settings[site]
    place = max(0, settings.index(choice[site]) - step)
    wanted = np.array(choice, np.float64)
    wanted[site] = 0.0
    moved = (*choice[:site], settings[place], *choice[site + 1 :])
    return space.fill(moved, wanted) if bool(space.fits([moved])[0]) else space.fit(shares_of(space, moved))
