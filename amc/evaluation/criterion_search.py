"""The best of several criteria at every site, by the site's estimated errors (`amc.importance.search`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amc.evaluation.settings import SearchObjective
from amc.evaluation.site_errors import SiteErrors
from amc.graph.sites import Graph
from amc.operators.channels import all_widths, legal_widths
from amc.operators.operator import NetworkFacts
from amc.reconstruction.moments import Moments
from amc.runtime.memory import Memory
from amc.task import Task


def best_orders(
    task: Task,
    graph: Graph,
    moments: Mapping[str, Moments],
    orders: Sequence[Sequence[Tensor]],
    objective: SearchObjective,
    min_keep: float,
    memory: Memory | None = None,
) -> list[int]:
    """For every site the place of the best of several criteria, each of which has given ``orders`` of all sites.

    The best has the least mean error over the site's legal widths below the full one; of equal ones it is the first.
    ``memory`` limits the backward pass for sensitivities.
    """
    facts = NetworkFacts(task.model, graph, orders=[order.numpy() for order in orders[0]])
    first = SiteErrors(task, facts, all_widths(graph), moments, objective, memory)
    tables = [first.with_orders(own) for own in orders]
    found = []
    for site, group in enumerate(graph.sites):
        widths = list(legal_widths(group.channels, min_keep))[:-1] or [group.channels]
        means = [errors.removing_channels(site)[widths].mean() for errors in tables]
        found.append(int(torch.stack(means).argmin()))
    return found
