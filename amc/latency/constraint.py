"""The latency constraint of a run: predict all policies, measure some, and correct the predictions.

`amc.latency.prediction` predicts, `amc.latency.verification` measures and records, `amc.latency.correction` corrects.
This module combines them. All state is in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amc.latency.correction import (
    BOUNDS,
    MARGIN,
    TOLERANCE,
    Correction,
    Corrections,
    Round,
    RoundOver,
    check_bounds,
    estimate,
)
from amc.latency.model import LatencyProblem, Predictor
from amc.latency.prediction import CorrectedCosts, LatencyPrediction
from amc.latency.profile import LearnedModel
from amc.latency.verification import (
    DeviceMeter,
    DeviceProof,
    MeasuredProof,
    Meter,
    Observation,
    PredictedProof,
    Proof,
    VerifiedLatency,
    Verifier,
)
from amc.runtime.journal import Journal
from amc.space.budget import Space, parse_limit
from amc.space.resources import CostModel
from amc.space.sites import Choice

NEAR_BUDGET = 4
"""Policies near the budget that are measured before the search."""
CHECKED = 3
"""Best policies that are measured at every check of a round."""
TIGHT = 0.005
"""A policy is fine-tuned only if its measured latency is below the limit by at least this share."""
Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class LatencyConstraint:
    """A limit on latency in one run."""

    limit_ms: float
    prediction: LatencyPrediction
    verifier: Verifier | None
    """None for a device that cannot be measured here: its model's predictions are taken as they are."""
    proof: Proof
    corrections: Corrections

    @property
    def round(self) -> Round:
        """The current round of the search."""
        return self.corrections.round

    @property
    def now(self) -> Correction:
        """The current correction of predictions."""
        return self.corrections.now

    def costs(self, exact: CostModel, settings: Sequence[Sequence[int]]) -> CorrectedCosts:
        """Exact costs, and latency as predicted in this round, for policies with these settings."""
        return CorrectedCosts(exact, self.prediction.non_decreasing(settings), self.now.scale)

    def keeps(self, choice: Choice) -> bool:
        """Whether a policy is within the limit, by its measurement or else by the corrected prediction.

        A measurement on a noisy machine is unreliable and does not count.
        """
        known = self.verifier.known(choice) if self.verifier else None
        return self._predicted_within(choice) if known is None or not known.reliable else self._within(known)

    def _predicted_within(self, choice: Choice) -> bool:
        return self.now.scale * self.prediction.ms(choice) <= self.limit_ms

    def _within(self, observation: Observation) -> bool:
        return self.now.tighter * observation.ms <= self.limit_ms * (1 - TIGHT)

    def expected_within(self, ranked: Sequence[Choice], count: int) -> list[Choice]:
        """The first ``count`` policies that should be within the limit; the first of all, where none should.

        Only measurements of earlier rounds count, so that a repeated round makes the same choice.
        """
        before = self.verifier.observations()[: self.now.observed] if self.verifier else []
        slow = {o.choice for o in before if o.reliable and not self._within(o)}
        fast = {o.choice for o in before if o.reliable and self._within(o)}
        good = [c for c in ranked if c in fast or (c not in slow and self._predicted_within(c))]
        return (good or list(ranked))[:count]

    def measure_near_budget(self, space: Space, seed: int, progress: Progress) -> bool:
        """Measure policies near the budget and correct the model, once in a run. Returns whether it was done now.

        Raises LatencyError when the correction is outside `BOUNDS`.
        """
        if self.verifier is None or self.corrections.all():
            return False
        rng = np.random.default_rng(seed)
        shares = [np.ones(len(space.names)), *rng.uniform(0.3, 1.0, (NEAR_BUDGET - 1, len(space.names)))]
        observed = self._observe(list(dict.fromkeys(space.fit(share) for share in shares)), progress)
        factor = self._reachable(space, estimate(observed))
        check_bounds(factor, observed)
        self.corrections.add(factor, "near the budget, before the search")
        return True

    def _reachable(self, space: Space, factor: float) -> float:
        """A factor by which the smallest network is within the limit, where it is as measured."""
        predicted = self.prediction.ms(space.smallest)
        if factor * predicted <= self.limit_ms:
            return factor
        (smallest,) = self._observe([space.smallest])
        return min(factor, (1 - TIGHT) * self.limit_ms / predicted) if self._within(smallest) else factor

    def check(self, space: Space, proposals: int, best: Callable[[], Sequence[Choice]]) -> None:
        """Called after every proposal of a round. At some of them the ``best`` policies so far are measured.

        Raises RoundOver when the model is inaccurate and another round is possible.
        """
        if self.verifier is None or proposals not in self.round.checks:
            return
        ranked = best()
        if len(ranked) < CHECKED:  # too few to tell
            return
        observed = self._observe(self.expected_within(ranked, CHECKED))
        factor = estimate(observed, self.now.factor)
        if abs(np.log(factor / self.now.factor)) > TOLERANCE and self._obstacle(space, factor) is None:
            self.corrections.add(factor, "the best policies so far", self.now.tighter, proposals)
            raise RoundOver(self.now.scale)

    def fast_enough(self, ranked: Sequence[Choice], count: int, progress: Progress) -> list[Choice]:
        """Measure the first ``count`` likely policies and return those within the limit, in order.

        If some of these were measured on an undisturbed machine, only they are returned.
        """
        if self.verifier is None:
            return list(ranked)
        observed = self._observe(self.expected_within(ranked, count), progress)
        sure = [o.choice for o in observed if o.reliable and self._within(o)]
        return sure or [o.choice for o in observed if self.keeps(o.choice)]

    def search_again(self, space: Space, choices: Sequence[Choice]) -> str | None:
        """Correct the model when all of the best policies are too slow; begins another round.

        Returns None, or the reason why another round is pointless.
        """
        if self.verifier is None:
            return "the device cannot be measured here"
        factor = estimate(self._observe(choices), self.now.factor)
        return self._next_round(space, factor, self.now.tighter, "the best policies")

    def tighten(self, space: Space, verified: VerifiedLatency) -> str | None:
        """Tighten the limit by the share that a fine-tuned network exceeded it by; begins another round.

        Returns None, or the reason why another round is pointless.
        """
        if self.verifier is None:
            return "the device cannot be measured here"
        tighter = self.now.tighter * verified.ms / verified.limit_ms * (1 + MARGIN)
        return self._next_round(space, self.now.factor, tighter, "the fine-tuned network")

    def _next_round(self, space: Space, factor: float, tighter: float, why: str) -> str | None:
        reason = self._obstacle(space, factor, tighter)
        if reason is None and factor * tighter <= self.now.scale:
            reason = "another search would find the same networks"
        if reason is None:
            self.corrections.add(factor, why, tighter)
        return reason

    def _obstacle(self, space: Space, factor: float, tighter: float | None = None) -> str | None:
        """The reason why no round is possible with a correction; None where one is."""
        scale = factor * (self.now.tighter if tighter is None else tighter)
        if self.round.is_last:
            return f"the search was run {self.round.number + 1} times"
        if not BOUNDS[0] <= scale <= BOUNDS[1]:
            return f"predictions would have to be corrected by {scale:.2f}, more than can be trusted"
        least = scale * space.costs(space.smallest)["latency"] / self.now.scale
        if least > self.limit_ms:
            return f"even the smallest network would take {least:.4g} ms"
        return None

    def closest(self, choices: Sequence[Choice]) -> Choice:
        """The policy with the least measured latency; where none was measured, the least predicted latency."""
        known = {o.choice: o.ms for o in self.verifier.observations()} if self.verifier else {}
        measured = [choice for choice in choices if choice in known]
        return min(measured, key=known.__getitem__) if measured else min(choices, key=self.prediction.ms)

    def _observe(self, choices: Sequence[Choice], progress: Progress | None = None) -> list[Observation]:
        assert self.verifier is not None
        found = []
        for number, choice in enumerate(choices, 1):
            found.append(self.verifier.observe(choice))
            if progress:
                progress(number / len(choices), "")
        return found

    def report(self, chosen: Choice) -> dict[str, Any]:
        """The part of result.json about the model and its corrections."""
        known = [o for o in self.verifier.observations() if o.reliable] if self.verifier else []
        off = [abs(o.predicted / o.ms - 1) for o in known]
        predicted = self.prediction.ms(chosen)
        return {
            **self.prediction.facts,
            "original_ms": self.prediction.original_ms,
            "predicted_ms": predicted,
            "corrected_ms": self.now.scale * predicted,
            "measured_policies": len(known),
            "measured_error": float(np.mean(off)) if off else None,
            "corrections": [{"factor": c.scale, "why": c.why} for c in self.corrections.all()],
        }


def constraint_here(
    model: LearnedModel, meter: Meter, asked: str, journal: Journal, evaluations: int
) -> LatencyConstraint:
    """A constraint on the latency of this machine: a learned model, verified here.

    ``asked`` is the limit as the user wrote it, such as ``0.5`` or ``3ms``.
    """
    prediction = LatencyPrediction.learned(model, meter.original_ms)
    limit_ms, proof = parse_limit("latency", asked, meter.original_ms), MeasuredProof(asked, meter.original_ms)
    verifier = Verifier(meter, prediction, journal)
    return LatencyConstraint(limit_ms, prediction, verifier, proof, Corrections(journal, evaluations))


def constraint_on_device(
    predictor: Predictor, problem: LatencyProblem, asked: str, journal: Journal, evaluations: int
) -> LatencyConstraint:
    """A constraint on the latency of a device that measures: a fitted model, verified on the device.

    A measurement takes seconds, so only few networks are measured: those that the model is fitted to, some near the
    budget, the best ones found, and the fine-tuned one.
    """
    prediction = LatencyPrediction.fitted(predictor, problem)
    limit_ms = parse_limit("latency", asked, prediction.original_ms)
    verifier = Verifier(DeviceMeter(predictor, problem), prediction, journal)
    proof = DeviceProof(predictor, limit_ms, verifier)
    return LatencyConstraint(limit_ms, prediction, verifier, proof, Corrections(journal, evaluations))


def constraint_by_model(predictor: Predictor, asked: str, journal: Journal, evaluations: int) -> LatencyConstraint:
    """A constraint on the latency of a device that cannot be measured here: predictions are taken as they are."""
    prediction = LatencyPrediction.of_device(predictor)
    limit_ms = parse_limit("latency", asked, prediction.original_ms)
    proof = PredictedProof(prediction, limit_ms)
    return LatencyConstraint(limit_ms, prediction, None, proof, Corrections(journal, evaluations))
