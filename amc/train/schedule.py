"""When to prune: a schedule turns the chosen policy into phases, each of which prunes and then trains.

A new schedule is a function beside these, and a line in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Protocol

import numpy as np

from amc.errors import ConfigError, first_line
from amc.runtime.plugins import is_plugin
from amc.runtime.registry import Entry, FunctionEntry, Registry, about, options
from amc.space.sites import Choice, PolicyGrid


@dataclass(frozen=True)
class Phase:
    """Prune to a policy, then train for so many epochs."""

    choice: Choice
    epochs: float


class Schedule(Protocol):
    """Gives the phases that lead to the chosen policy, which the last of them prunes to.

    ``epochs`` is what all phases may train together. Settings of a schedule are its keyword-only parameters. No site
    may grow from one phase to the next.
    """

    def __call__(self, grid: PolicyGrid, chosen: Choice, epochs: float, **settings: Any) -> list[Phase]: ...


def one_shot(grid: PolicyGrid, chosen: Choice, epochs: float) -> list[Phase]:
    """Prune at once, then train."""
    return [Phase(chosen, epochs)]


def iterative(
    grid: PolicyGrid,
    chosen: Choice,
    epochs: float,
    *,
    steps: Annotated[int, about("times that the network is pruned and trained", ge=1, le=100)] = 3,
) -> list[Phase]:
    """Prune and train by turns (Han et al. 2015, arXiv:1506.02626, section 3.3).

    Every site goes from its original setting to the chosen one in equal steps along its settings, and every phase has
    an equal share of the epochs and a learning-rate cycle of its own. Deviation: the paper thresholds weights anew in
    each turn; here channels go in the order that the criterion gave once.

    >>> from amc.space.sites import PolicyGrid, numeric_sites
    >>> grid = PolicyGrid(numeric_sites("ab", [(4, 8, 12, 16), (8, 16)]))
    >>> [phase.choice for phase in iterative(grid, (4, 16), 3.0)]
    [(12, 16), (8, 16), (4, 16)]
    """
    first, last = grid.positions(grid.full), grid.positions(chosen)
    turns = [np.rint(first + (last - first) * turn / steps).astype(np.int64) for turn in range(1, steps + 1)]
    distinct = list(dict.fromkeys(grid.choice(places) for places in turns))
    return [Phase(choice, epochs / len(distinct)) for choice in distinct]


SCHEDULES: Registry[Schedule] = Registry("schedule", "amc.schedules", (
    FunctionEntry("one-shot", "prune at once, then train", "amc.train.schedule:one_shot"),
    FunctionEntry("iterative", "prune and train by turns", "amc.train.schedule:iterative",
                  "Han et al. 2015, arXiv:1506.02626"),
))  # fmt: skip


def schedules() -> dict[str, Entry[Schedule]]:
    """All schedules by name.

    >>> list(schedules())[:2]
    ['one-shot', 'iterative']
    """
    return SCHEDULES.entries()


def check_schedule(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule's ``settings`` as it takes them. Raises ConfigError where there is none, or a setting is wrong."""
    return options(f"schedule {name}", SCHEDULES.load(name), settings)


def phases(name: str, settings: Mapping[str, Any], grid: PolicyGrid, chosen: Choice, epochs: float) -> list[Phase]:
    """What a schedule gives for a chosen policy.

    There is one phase where nothing is trained, and where the policy is not of this grid, as after a search in a space
    that a correction of the latency model has changed since.

    >>> from amc.space.sites import PolicyGrid, numeric_sites
    >>> phases("iterative", {"steps": 2}, PolicyGrid(numeric_sites("a", [(4, 8, 12)])), (4,), 1.0)
    [Phase(choice=(8,), epochs=0.5), Phase(choice=(4,), epochs=0.5)]

    Raises ConfigError where a schedule of the user's own fails, or does not lead to the chosen policy.
    """
    if epochs == 0 or not grid.is_legal(chosen):
        return one_shot(grid, chosen, epochs)
    given = check_schedule(name, settings)
    try:
        found = list(SCHEDULES.load(name)(grid, chosen, epochs, **given))
        path = [grid.positions(phase.choice) for phase in found]
    except Exception as error:
        if not is_plugin(name):
            raise
        raise ConfigError(f"the schedule {name} fails: {type(error).__name__}: {first_line(error)}") from error
    if not found or tuple(found[-1].choice) != tuple(chosen):
        raise ConfigError(f"the schedule {name} does not end at the chosen policy.")
    if any((after > before).any() for before, after in pairwise(path)):
        raise ConfigError(f"the schedule {name} lets a site grow again: each phase may only remove more.")
    return found
