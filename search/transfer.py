"""One search for all budgets of a network: SPDY's coefficients, found at one budget and used at every other.

What the coefficients make up for, how layers act on each other, is the network's more than the budget's. So they are
searched half-way between the smallest network and the whole one, whatever the budget; nearly all evaluations go there,
and the best few coefficients are then decoded to the budget and evaluated. Runs of one network at many budgets ask for
the same coefficients at the middle: with a cache (`--cache`, or in a batch) the first of them searches, and the others
take over what it has found. A policy of the budget itself costs an evaluation and, before one is chosen, a careful one
that takes two or three times as long (`Evaluator.refined_score`); so few are taken, and ten budgets evaluate little
more than one does.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from amc.evaluation.problem import Problem
from amc.runtime.registry import about
from amc.search.allocate import error_tables, fast_decoder
from amc.search.spdy import climb
from amc.space.budget import Space


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    one_in: Annotated[int, about("one evaluation in so many is at the budget itself", ge=1)] = 30,
    own: Annotated[int, about("fewest evaluations at the budget itself", ge=1)] = 2,
) -> None:
    """Search coefficients at the middle, then propose what the best of them give at the budget."""
    own = min(evaluations, max(own, evaluations // one_in))
    space, tables = problem.space, error_tables(problem)
    limits, shared = middle(space), evaluations - own

    def found() -> list[tuple[float, list[float]]]:
        pairs = climb(problem.under(limits), tables, shared, seed)
        return [(reward, coefficients.tolist()) for reward, coefficients in pairs]

    ranked = [np.zeros(len(space.names))]
    if shared:
        pairs = problem.memo(["transfer", limits, shared, seed], found)
        ranked = [np.array(coefficients) for _, coefficients in sorted(pairs, key=lambda pair: -pair[0])]
    decode = fast_decoder(space, tables)
    choices = list(dict.fromkeys(decode(np.exp(coefficients)) for coefficients in ranked))
    for index in range(own):
        problem.evaluate(choices[min(index, len(choices) - 1)])


def middle(space: Space) -> dict[str, float]:
    """The limit half-way between the smallest policy's MACs and the whole network's."""
    least, most = (space.costs(choice)["macs"] for choice in (space.smallest, space.full))
    return {"macs": (least + most) / 2}
