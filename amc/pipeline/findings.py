"""The results of a run's stages, collected for result.json (`amc.pipeline.summary`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from amc.evaluation.evaluator import Evaluator
from amc.latency.constraint import LatencyConstraint
from amc.pipeline.exporting import Counted
from amc.pipeline.record import Record
from amc.pipeline.rounds import Compressed
from amc.pipeline.spaces import unproved_resources
from amc.pipeline.summary import Findings
from amc.space.budget import Space
from amc.space.sites import Choice


def findings(
    record: Record,
    evaluator: Evaluator,
    latency: LatencyConstraint | None,
    found: Compressed,
    scores: Mapping[str, float],
    int8: Mapping[str, Any] | None,
    answers: Mapping[str, Any] | None = None,
) -> Findings:
    """The contents of result.json. ``scores``: metrics by network and split. ``answers``: `amc.pipeline.answers`."""
    space, exported = found.space, found.exported
    proof = [*exported.proof, found.verified.to_json()] if found.verified else exported.proof
    return Findings(
        original=_exact_costs(space, space.full),
        final=_final_costs(space, found.chosen, exported.counted, unproved_resources(record.config, space)),
        limits=space.limits,
        evaluations=len(found.evaluations),
        recalibrate=evaluator.settings.recalibrate,
        pruned_metric=next(c["before"] for c in found.candidates if c["chosen"]),
        candidates=found.candidates,
        proof=proof,
        parity=exported.parity,
        latency=found.measured,
        prediction=latency.report(found.chosen) if latency else None,
        scores=scores,
        stages=record.seconds(),
        precision=record.precision(),
        epochs=record.epochs,
        int8=int8,
        unwritten=exported.unwritten,
        macs=exported.macs,
        obstacle=found.obstacle,
        sensitivity=_sensitivity(record, space),
        layers=found.layers,
        answers=answers,
    )


def _sensitivity(record: Record, space: Space) -> Sequence[Mapping[str, Any]] | None:
    """The estimated errors of the space's sites, if the searcher has asked for them."""
    known = record.journal.last("sensitivity")
    found: Sequence[Mapping[str, Any]] = known["found"] if known else []
    return found if [line["site"] for line in found] == list(space.names) else None


def _exact_costs(space: Space, choice: Choice) -> dict[str, float]:
    """Costs by resource, without latency, which is measured, and without branches if none may be removed."""
    omitted = {"latency"} if any(site.sizes[0] == 0 for site in space.sites) else {"latency", "branches"}
    return {name: value for name, value in space.costs(choice).items() if name not in omitted}


def _final_costs(
    space: Space, choice: Choice, counted: Mapping[str, Counted], unproved: Collection[str]
) -> dict[str, float]:
    """Costs of the delivered network. Its size and ``unproved`` resources are counted in the exported files."""
    return {**_exact_costs(space, choice), **{name: float(counted[name].amount) for name in ("size", *unproved)}}
