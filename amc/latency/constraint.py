"""The limit on latency in a run: policies are predicted, verified by measuring some, and predictions corrected by that.

The three are apart: `amc.latency.prediction` predicts, `amc.latency.verification` measures and records,
`amc.latency.correction` corrects. Here they meet. The journal is all that changes.
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
    estimate,
    refuse_wild,
)
from amc.latency.model import LatencyProblem, Predictor
from amc.latency.prediction import CorrectedCosts, LatencyPrediction
from amc.latency.profile import LearnedModel
from amc.latency.verification import (
    BesideOriginal,
    ByPrediction,
    DeviceMeter,
    Meter,
    Observation,
    OnDevice,
    Proof,
    VerifiedLatency,
    Verifier,
)
from amc.runtime.journal import Journal
from amc.space.budget import Space, parse_limit
from amc.space.resources import CostModel
from amc.space.sites import Choice

AIMED = 4
"""Policies near the budget that are measured before the search."""
CHECKED = 3
"""Best policies that are measured during a round."""
TIGHT = 0.005
"""A policy must take less than the limit by this share when it is measured, to be fine-tuned."""
Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class LatencyConstraint:
    """A limit on latency in one run."""

    limit_ms: float
    prediction: LatencyPrediction
    verifier: Verifier | None
    """None for a device that cannot be measured here: its model is believed."""
    proof: Proof
    corrections: Corrections

    @property
    def round(self) -> Round:
        """The round that the search is in."""
        return self.corrections.round

    @property
    def now(self) -> Correction:
        """What predictions are corrected by."""
        return self.corrections.now

    def costs(self, exact: CostModel, settings: Sequence[Sequence[int]]) -> CorrectedCosts:
        """Exact costs and latency as this round predicts it, for policies of these settings."""
        return CorrectedCosts(exact, self.prediction.non_decreasing(settings), self.now.scale)

    def keeps(self, choice: Choice) -> bool:
        """Whether a policy is within the limit: as measured, or else as the corrected model predicts.

        What was measured on a noisy machine says little, and counts as not measured.
        """
        known = self.verifier.known(choice) if self.verifier else None
        return self._predicted_within(choice) if known is None or not known.reliable else self._within(known)

    def _predicted_within(self, choice: Choice) -> bool:
        return self.now.scale * self.prediction.ms(choice) <= self.limit_ms

    def _within(self, observation: Observation) -> bool:
        return self.now.tighter * observation.ms <= self.limit_ms * (1 - TIGHT)

    def likely(self, ranked: Sequence[Choice], count: int) -> list[Choice]:
        """The first ``count`` policies that are within the limit by what earlier rounds know; of all, where none is.

        What this round measures does not count, or it would choose otherwise when it is repeated.
        """
        before = self.verifier.observations()[: self.now.observed] if self.verifier else []
        slow = {o.choice for o in before if o.reliable and not self._within(o)}
        fast = {o.choice for o in before if o.reliable and self._within(o)}
        good = [c for c in ranked if c in fast or (c not in slow and self._predicted_within(c))]
        return (good or list(ranked))[:count]

    def aim(self, space: Space, seed: int, progress: Progress) -> bool:
        """Measure policies near the budget and correct the model by them, once in a run: whether that was done now.

        Raises LatencyError when predictions are off by more than `BOUNDS`.
        """
        if self.verifier is None or self.corrections.all():
            return False
        rng = np.random.default_rng(seed)
        shares = [np.ones(len(space.names)), *rng.uniform(0.3, 1.0, (AIMED - 1, len(space.names)))]
        observed = self._observe(list(dict.fromkeys(space.fit(share) for share in shares)), progress)
        factor = estimate(observed)
        refuse_wild(factor, observed)
        self.corrections.add(factor, "near the budget, before the search")
        return True

    def check(self, space: Space, proposals: int, best: Callable[[], Sequence[Choice]]) -> None:
        """Told after every proposal of a round. At some points the ``best`` policies so far are measured.

        Where the model turns out to be off, and another round has something to search, raises RoundOver.
        """
        if self.verifier is None or proposals not in self.round.checks:
            return
        ranked = best()
        if len(ranked) < CHECKED:  # fewer say too little
            return
        observed = self._observe(self.likely(ranked, CHECKED))
        factor = estimate(observed, self.now.factor)
        if abs(np.log(factor / self.now.factor)) > TOLERANCE and self._obstacle(space, factor) is None:
            self.corrections.add(factor, "the best policies so far", self.now.tighter, proposals)
            raise RoundOver(self.now.scale)

    def fast_enough(self, ranked: Sequence[Choice], count: int, progress: Progress) -> list[Choice]:
        """Of the first ``count`` likely policies those within the limit when measured, in order.

        Where some were measured undisturbed and are, only those.
        """
        if self.verifier is None:
            return list(ranked)
        observed = self._observe(self.likely(ranked, count), progress)
        sure = [o.choice for o in observed if o.reliable and self._within(o)]
        return sure or [o.choice for o in observed if self.keeps(o.choice)]

    def search_again(self, space: Space, choices: Sequence[Choice]) -> str | None:
        """Correct the model by the best policies, all too slow. The reason when there is no point in another round."""
        if self.verifier is None:
            return "the device cannot be measured here"
        factor = estimate(self._observe(choices), self.now.factor)
        return self._next_round(space, factor, self.now.tighter, "the best policies")

    def tighten(self, space: Space, verified: VerifiedLatency) -> str | None:
        """Tighten the limit by how much a fine-tuned network missed it. The reason when another round is no use."""
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
        """Why no round can be made with a correction, if so."""
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
        """The policy that took least when it was measured; where none was, that is predicted to."""
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
        """What result.json holds of the model and of its corrections."""
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


def limited_here(
    model: LearnedModel, meter: Meter, asked: str, journal: Journal, evaluations: int
) -> LatencyConstraint:
    """By a model learned on this machine, verified on it. ``asked`` is the limit as the user gave it."""
    prediction = LatencyPrediction.learned(model, meter.original_ms)
    limit_ms, proof = parse_limit("latency", asked, meter.original_ms), BesideOriginal(asked, meter.original_ms)
    verifier = Verifier(meter, prediction, journal)
    return LatencyConstraint(limit_ms, prediction, verifier, proof, Corrections(journal, evaluations))


def limited_on_device(
    predictor: Predictor, problem: LatencyProblem, asked: str, journal: Journal, evaluations: int
) -> LatencyConstraint:
    """By a model fitted to what a device took that measures, verified on it.

    A measurement takes seconds, so few networks are measured: those that the model is fitted to, some near the budget,
    the best ones found, and the fine-tuned one.
    """
    prediction = LatencyPrediction.fitted(predictor, problem)
    limit_ms = parse_limit("latency", asked, prediction.original_ms)
    verifier = Verifier(DeviceMeter(predictor, problem), prediction, journal)
    proof = OnDevice(predictor, limit_ms, verifier)
    return LatencyConstraint(limit_ms, prediction, verifier, proof, Corrections(journal, evaluations))


def limited_by_model(predictor: Predictor, asked: str, journal: Journal, evaluations: int) -> LatencyConstraint:
    """By a model of a device that cannot be measured here: what it says is believed."""
    prediction = LatencyPrediction.of_device(predictor)
    limit_ms = parse_limit("latency", asked, prediction.original_ms)
    proof = ByPrediction(prediction, limit_ms)
    return LatencyConstraint(limit_ms, prediction, None, proof, Corrections(journal, evaluations))
