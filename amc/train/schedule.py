"""When to prune: a schedule turns the chosen policy into phases, each of which prunes and then trains.

A new schedule is a function beside these, and a line in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from amc.errors import ConfigError
from amc.runtime.registry import Entry, FunctionEntry, Registry, about, options
from amc.space.sites import Choice, PolicyGrid

BEFORE_TRAINING = "before-training"


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
    return _equal_phases([grid.choice(places) for places in turns], epochs)


def gradual(
    grid: PolicyGrid,
    chosen: Choice,
    epochs: float,
    *,
    steps: Annotated[int, about("times that the network is pruned and trained", ge=1, le=100)] = 6,
    power: Annotated[float, about("exponent; the higher, the more goes in the first phases", gt=0, le=10)] = 3.0,
) -> list[Phase]:
    """Prune much at first, then ever less (Zhu & Gupta 2017, arXiv:1710.01878, equation 1).

    s_t = s_f + (s_i − s_f) (1 − t / n)³ along every site's settings, t from 1 to n. Every phase has an equal share of
    the epochs. Deviations: whole channels go, in the order that the criterion gave once; the paper prunes every 100
    steps of one training, here every phase has a learning-rate cycle of its own.

    >>> from amc.space.sites import PolicyGrid, numeric_sites
    >>> [phase.choice for phase in gradual(PolicyGrid(numeric_sites("a", [range(1, 30)])), (2,), 3.0, steps=3)]
    [(10,), (3,), (2,)]
    """
    first, last = grid.positions(grid.full), grid.positions(chosen)
    left = [(1 - turn / steps) ** power for turn in range(1, steps + 1)]
    return _equal_phases(
        [grid.choice(np.rint(last + (first - last) * share).astype(np.int64)) for share in left], epochs
    )


def layerwise(
    grid: PolicyGrid,
    chosen: Choice,
    epochs: float,
    *,
    sites: Annotated[int, about("sites that are pruned in a phase", ge=1, le=10_000)] = 1,
    order: Annotated[Literal["forward", "backward"], about("which come first: forward or backward")] = "forward",
) -> list[Phase]:
    """One channel group after the other, with training between (Luo et al. 2017, ThiNet, arXiv:1707.06342).

    Sites that lose nothing have no phase; all others have equal shares of the epochs, and a learning-rate cycle each.

    >>> from amc.space.sites import PolicyGrid, numeric_sites
    >>> grid = PolicyGrid(numeric_sites("ab", [(4, 8), (8, 16)]))
    >>> [phase.choice for phase in layerwise(grid, (4, 8), 2.0)]
    [(4, 16), (4, 8)]
    """
    full = grid.full
    losing = [site for site in range(len(full)) if chosen[site] != full[site]]
    if order == "backward":
        losing.reverse()
    path, pruned = [], set[int]()
    for start in range(0, len(losing), sites):
        pruned.update(losing[start : start + sites])
        path.append(tuple(chosen[site] if site in pruned else full[site] for site in range(len(full))))
    return _equal_phases(path or [tuple(chosen)], epochs)


def _equal_phases(path: Sequence[Choice], epochs: float) -> list[Phase]:
    """Phases of equal length, without those that prune nothing."""
    distinct = list(dict.fromkeys(path))
    return [Phase(choice, epochs / len(distinct)) for choice in distinct]


SCHEDULES: Registry[Schedule] = Registry("schedule", "amc.schedules", (
    FunctionEntry("one-shot", "prune at once, then train", "amc.train.schedule:one_shot"),
    FunctionEntry("iterative", "prune and train by turns", "amc.train.schedule:iterative",
                  "Han et al. 2015, arXiv:1506.02626"),
    FunctionEntry("gradual", "prune much at first, then ever less, with training between",
                  "amc.train.schedule:gradual", "Zhu & Gupta 2017, arXiv:1710.01878"),
    FunctionEntry("layerwise", "prune one channel group after the other, with training between",
                  "amc.train.schedule:layerwise", "Luo et al. 2017, ThiNet, arXiv:1707.06342"),
    FunctionEntry(BEFORE_TRAINING, "prune a network that has not been trained, then train it",
                  "amc.train.schedule:one_shot", "Lee et al. 2018, SNIP, arXiv:1810.02340"),
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
    with SCHEDULES.guarded(name):
        found = list(SCHEDULES.load(name)(grid, chosen, epochs, **given))
        path = [grid.positions(phase.choice) for phase in found]
    if not found or tuple(found[-1].choice) != tuple(chosen):
        raise ConfigError(f"the schedule {name} does not end at the chosen policy.")
    if any((after > before).any() for before, after in pairwise(path)):
        raise ConfigError(f"the schedule {name} lets a site grow again: each phase may only remove more.")
    return found
