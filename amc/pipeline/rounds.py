"""One round of a run: search, choose, train, export, measure. Without a limit on latency there is one.

Where latency is limited and turns out to be predicted wrongly, the model is corrected and another round is made, in the
space that the correction gives.
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
from amc.pipeline.exporting import Exported, export_network
from amc.pipeline.measuring import Measuring
from amc.pipeline.record import Record
from amc.pipeline.recovering import drop_checkpoints, recover_in_phases
from amc.pipeline.stages import Stages
from amc.space.budget import Space, format_cost
from amc.space.sites import Choice


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the rounds of a run have in common."""

    graph: Graph
    evaluator: Evaluator
    latency: LatencyConstraint | None


@dataclass(frozen=True, eq=False)
class Compressed:
    """What a round ends with."""

    chosen: Choice
    model: nn.Module
    """Pruned and trained."""
    space: Space
    evaluations: Sequence[Evaluation]
    candidates: Sequence[Mapping[str, Any]]
    exported: Exported
    measured: Measurement
    verified: VerifiedLatency | None = None
    """Where latency is limited."""
    obstacle: str | None = None
    """Why the limit on latency is not met, though no other round is made."""


def run_rounds(record: Record, stages: Stages, prepared: Prepared, space: Space) -> Compressed:
    """Rounds until the network meets the limit on latency, or no other round would help. ``space`` is the first's."""
    found = run_round(record, stages, prepared, space)
    while found is None:
        space = stages.space(prepared.graph, prepared.latency)  # with what was corrected since
        found = run_round(record, stages, prepared, space)
    return found


def run_round(record: Record, stages: Stages, prepared: Prepared, space: Space) -> Compressed | None:
    """One round; None where latency is predicted otherwise since, and another one is to be made."""
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
        exported = export_network(record, model, graph, evaluator.kept(chosen), space.limits)
    with record.stage("measure"):
        measured = measuring.measure(latency)
        verified = latency.proof.verify(record.folder / "model.onnx", chosen, measured) if latency else None
    obstacle = None
    if latency and verified and not verified.met:
        obstacle = shortlist.obstacle or latency.tighten(space, verified)
        if not _is_delivered(record, verified, obstacle):
            return None
    return Compressed(chosen, model, space, found, candidates, exported, measured, verified, obstacle)


def _is_delivered(record: Record, verified: VerifiedLatency, obstacle: str | None) -> bool:
    """Whether a network that misses the limit on latency is delivered: there is an obstacle to another round."""
    measured, limit = format_cost("latency", verified.ms), format_cost("latency", verified.limit_ms)
    if obstacle is None:
        record.monitor.say(f"measured {measured}, over {limit}: searching again")
        drop_checkpoints(record)
    else:
        record.monitor.say(f"measured {measured}, over {limit}, and {obstacle}: this network is delivered")
    return obstacle is not None
