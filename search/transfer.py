"""One search for all budgets of a network: SPDY's coefficients are searched at one budget and used at every other.

The coefficients compensate for the interaction between layers, which depends more on the network than on the budget. So
they are searched at a middle budget, half-way between the smallest network and the original, with nearly all
evaluations. The best few coefficients are then decoded at the actual budget and evaluated there.

Runs of one network at many budgets need the same coefficients. With a cache (``--cache``, or in a batch) the first run
searches and the others use its result. A policy at the actual budget costs an evaluation, and also a full one that
takes two or three times as long (`Evaluator.refined_score`). So there are only few of them, and ten budgets need little
more evaluations than one.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.search.allocate import Floats, error_tables, fast_decoder
from amc.search.spdy import climb
from amc.space.budget import Space


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    one_in: Annotated[int, about("one in so many evaluations is at the actual budget", ge=1)] = 30,
    own: Annotated[int, about("fewest evaluations at the actual budget", ge=1)] = 2,
) -> None:
    """Search coefficients at the middle budget, then propose the best ones' policies at the actual budget."""
    own = min(evaluations, max(own, evaluations // one_in))
    space, tables = problem.space, error_tables(problem)
    limits, shared = middle(space), evaluations - own
    ranked = [np.zeros(len(space.names))]
    if shared:
        climbed = partial(_climb, problem.under(limits), tables, shared, seed)
        pairs = problem.memo(["transfer", limits, shared, seed], climbed)
        ranked = [np.array(coefficients) for _, coefficients in sorted(pairs, key=lambda pair: -pair[0])]
    decode = fast_decoder(space, tables)
    choices = list(dict.fromkeys(decode(np.exp(coefficients)) for coefficients in ranked))
    for index in range(own):
        problem.evaluate(choices[min(index, len(choices) - 1)])


def _climb(problem: Problem, tables: list[Floats], evaluations: int, seed: int) -> list[tuple[float, list[float]]]:
    """`climb`, with results that JSON can store."""
    return [(reward, found.tolist()) for reward, found in climb(problem, tables, evaluations, seed)]


def middle(space: Space) -> dict[str, float]:
    """The limit half-way between the MACs of the smallest policy and those of the original."""
    least, most = (space.costs(choice)["macs"] for choice in (space.smallest, space.full))
    return {"macs": (least + most) / 2}
