"""The collectors of what criteria need. A new need is a member of `Need`, a collector, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amc.graph.sites import Graph
from amc.importance.attention import collect_attention
from amc.importance.criterion import Need
from amc.importance.curvature import collect_curvature
from amc.importance.statistics import collect_activations, collect_gradients
from amc.importance.synflow import collect_flow
from amc.task import Task

COLLECTORS: dict[Need, Callable[[Task, Graph], dict[str, Tensor]]] = {
    Need.ACTIVATIONS: collect_activations,
    Need.GRADIENTS: collect_gradients,
    Need.CURVATURE: collect_curvature,
    Need.FLOW: collect_flow,
    Need.ATTENTION: collect_attention,
}


def collect(need: Need, task: Task, graph: Graph) -> dict[str, Tensor]:
    """The statistics of one need (`amc.importance.statistics`); empty where nothing has to be collected."""
    collector = COLLECTORS.get(need)
    return {} if collector is None else collector(task, graph)
