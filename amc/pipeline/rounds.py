"""The rounds of a run: search, choose, train, export, measure. Without a limit on latency there is one round.

With a limit, predictions of latency may turn out to be wrong. Then the latency model is corrected, and another round
follows in a space with the corrected costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from amc.evaluation.evaluator import Evaluator
from amc.evaluation.reward import Evaluation
from amc.graph.sites import Graph
from amc.latency import Measurement
from amc.latency.constraint import LatencyConstraint
from amc.latency.verification import VerifiedLatency
from amc.pipeline.choosing import Choosing
from amc.pipeline.exporting import AppliedPolicy, Exported, export_network
from amc.pipeline.layers import layer_table
from amc.pipeline.measuring import Measuring
from amc.pipeline.record import Record
from amc.pipeline.recovering import drop_checkpoints, recover_in_phases
from amc.pipeline.stages import Stages
from amc.space.budget import Space, format_cost
from amc.space.sites import Choice


@dataclass(frozen=True, eq=False)
class Prepared:
    """The inputs that all rounds of a run share."""

    graph: Graph
    evaluator: Evaluator
    latency: LatencyConstraint | None


@dataclass(frozen=True, eq=False)
class Compressed:
    """The result of a successful round."""

    chosen: Choice
    model: nn.Module
    """Pruned and trained."""
    space: Space
    evaluations: Sequence[Evaluation]
    candidates: Sequence[Mapping[str, Any]]
    exported: Exported
    measured: Measurement
    layers: Sequence[Mapping[str, Any]]
    """Every layer before and after (`amc.pipeline.layers`)."""
    verified: VerifiedLatency | None = None
    """The verified latency; None without a limit."""
    obstacle: str | None = None
    """Why the limit on latency is not met and no other round follows."""


def run_rounds(record: Record, stages: Stages, prepared: Prepared, space: Space) -> Compressed:
    """Run rounds until the limit on latency is met or another round would not help. ``space`` is the first round's."""
    found = run_round(record, stages, prepared, space)
    while found is None:
        space = stages.space(prepared.graph, prepared.latency)  # with the latest correction
        found = run_round(record, stages, prepared, space)
    return found


def run_round(record: Record, stages: Stages, prepared: Prepared, space: Space) -> Compressed | None:
    """Run one round. None if the latency model was corrected, so that another round is needed."""
    graph, evaluator, latency = prepared.graph, prepared.evaluator, prepared.latency
    choosing, measuring = Choosing(record), Measuring(record)
    with record.stage("search"):
        found = stages.search(graph, space, evaluator, latency)
    if found is None:
        return None
    with record.stage("choose"):
        shortlist = choosing.shortlist(found, space, latency)
        if shortlist is None:
            return None
        chosen, candidates = choosing.choose(shortlist.evaluations, evaluator)
    with record.optional_stage(record.training_stage, record.epochs > 0):
        model = recover_in_phases(record, evaluator, record.phases(space, chosen), graph)
    with record.stage("export"):
        policy = AppliedPolicy(evaluator.kept(chosen), evaluator.recorded(chosen), evaluator.operators)
        exported = export_network(record, model, graph, policy, space.limits)
    with record.stage("measure"):
        measured = measuring.measure(latency)
        layers = layer_table(record)
        verified = latency.proof.verify(record.folder / "model.onnx", chosen, measured) if latency else None
    obstacle = None
    if latency and verified and not verified.met:
        obstacle = shortlist.obstacle or latency.tighten(space, verified)
        if not _is_delivered(record, verified, obstacle):
            return None
    return Compressed(chosen, model, space, found, candidates, exported, measured, layers, verified, obstacle)


def _is_delivered(record: Record, verified: VerifiedLatency, obstacle: str | None) -> bool:
    """Whether a network over the limit on latency is delivered, because of an ``obstacle`` to another round."""
    measured, limit = format_cost("latency", verified.ms), format_cost("latency", verified.limit_ms)
    if obstacle is None:
        record.monitor.say(f"measured {measured}, over {limit}: searching again")
        drop_checkpoints(record)
    else:
        record.monitor.say(f"measured {measured}, over {limit}, and {obstacle}: this network is delivered")
    return obstacle is not None
