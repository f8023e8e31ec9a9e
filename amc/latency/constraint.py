"""Latency in a run: measured, predicted, limited, corrected, and the promise.

The search asks a latency model. What it is wrong by near the budget is found out on the runtime: on a few policies
before the search, on the best ones during and after it, and on the fine-tuned network. Each time the model is
corrected by a factor. A search goes on under it; where the budget does not hold afterwards, the run searches again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.errors import BudgetError
from amc.latency import Measurement
from amc.latency.profile import LearnedModel
from amc.latency.quiet import QUIET, Timing
from amc.operators.channels import widths_of
from amc.runtime.journal import Journal
from amc.space.budget import NOTHING, Space, is_absolute, parse_limit
from amc.space.resources import CostModel, Costs
from amc.space.sites import Choice, Floats

Predict = Callable[[ArrayLike], NDArray[np.float64]]
"""Milliseconds ``[B]`` of widths ``[B, S]``."""

AIMED, SESSIONS = 4, 3
"""Policies near the budget that are measured before the search, and sessions for each measured policy."""
CHECKS, CHECKED = (0.25, 0.5, 0.75), 3
"""When in a search the model is held against what is measured, and so many of the best policies are."""
CORRECTIONS = 6
"""So many searches are made before a run gives up."""
MARGIN, TIGHT = 0.015, 0.005
"""By so much less than the limit is aimed at, since a measurement of some seconds leaves as much open; and by so much
less must a policy take that is fine-tuned."""
AGREE = 0.1
"""So far apart, in logarithms, may be what a loud machine is slower by for several policies, to be believed."""
BUSY = 1.3
"""So much slower than usual the original is on a machine that is busy with something else."""


class Paced:
    """Exact costs, and latency in ms as a model predicts it, corrected by the factor of the moment."""

    def __init__(self, exact: CostModel, predict: Predict, factor: Callable[[], float]) -> None:
        self._exact, self._predict, self._factor = exact, predict, factor

    def costs(self, choices: ArrayLike) -> Mapping[str, Floats]:
        exact = self._exact.costs(choices)
        ways = {name: partial(exact.__getitem__, name) for name in exact}
        return Costs({**ways, "latency": lambda: self._factor() * self._predict(choices)})


def steps(predict: Predict, settings: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The settings that are worth something: those where the next wider one costs more time.

    Every site is looked at with the others whole. ONNX Runtime computes channels in blocks, so a width within a block
    costs what the whole block does.
    """
    full = [s[-1] for s in settings]
    found = []
    for site, own in enumerate(settings):
        times = predict([[*full[:site], width, *full[site + 1 :]] for width in own])
        least = np.minimum.accumulate(times[::-1])[::-1]
        nothing = NOTHING * max(0.0, float(times[-1] - least[0]))
        kept: list[int] = [own[-1]]
        cost = times[-1]
        for width, ms in zip(reversed(own[:-1]), times[-2::-1], strict=True):
            if ms < cost - nothing:
                kept.append(width)
                cost = ms
        found.append(tuple(reversed(kept)))
    return tuple(found)


class Meter(Protocol):
    """What measures policies: a `Bench`, or a device of the user's."""

    @property
    def full(self) -> tuple[int, ...]: ...

    @property
    def original_ms(self) -> float: ...

    def timing(self, widths: Sequence[int], sessions: int = 1) -> Timing: ...


class Pace:
    """The latency of one run on this machine, and its record in the journal."""

    measures = True
    """Whether policies can be measured, and the model corrected by that."""

    def __init__(
        self,
        predict: Predict,
        meter: Meter,
        asked: str,
        journal: Journal,
        said: dict[str, Any],
        original_ms: float | None = None,
    ) -> None:
        """``asked`` is the user's limit, ``said`` what the report says of the model, ``original_ms`` what the limit is
        a share of, if not the meter's."""
        self.predict, self.said = predict, said
        self._meter, self._journal, self._asked = meter, journal, asked
        self._corrections = [{"tighter": 1.0, "after": None, **r} for r in journal.records("correction")]
        self._proposals: float = math.inf
        self._checks: set[int] = set()
        self._least_ms = 0.0
        self.original_ms = meter.original_ms if original_ms is None else original_ms
        self.limit_ms = parse_limit("latency", asked, self.original_ms)

    def within(self, settings: Sequence[Sequence[int]]) -> Predict:
        """The model for these settings, never less for a wider one where that can be had."""
        return self.predict

    def promise(self, final: Path, chosen: Choice, latency: Measurement) -> dict[str, Any]:
        """The limit held against what was measured beside the original: the upper end of the 95 % interval.

        Where it is missed, the model is corrected for another search.
        """
        original, last = latency.latencies["original"], latency.latencies["final"]
        limit, value = parse_limit("latency", self._asked, original.p10_ms), original.p10_ms * last.ratio_high
        if is_absolute(self._asked):
            value = last.p10_ms * last.ratio_high / last.ratio
        how = "measured beside the original, upper end of the 95 % interval"
        if self.was_loud(latency):
            how += f"; the machine was busy: it took {original.p10_ms:.3g} ms, {self.original_ms:.3g} ms when quiet"
        return proof(limit, value, self.keeps(value, limit), how)

    def was_loud(self, latency: Measurement) -> bool:
        """Whether the original took so much longer than usual that the measurement says little."""
        return self.measures and latency.latencies["original"].p10_ms > BUSY * self.original_ms

    @property
    def factor(self) -> float:
        """By what the model's predictions are corrected now; during a search, as far as that has come."""
        return self._factors()[-1]

    @property
    def least_factor(self) -> float:
        """The smallest factor of the search so far: by it every policy fits that has ever fitted."""
        return min(self._factors())

    def _factors(self) -> list[float]:
        """The factor that a search began with, and those that it found."""
        found = [1.0]
        for record in self._corrections:
            factor = record["factor"] * record["tighter"]
            if record["after"] is None:
                found = [factor]
            elif record["after"] <= self._proposals:
                found.append(factor)
        return found

    @property
    def tighter(self) -> float:
        """By what fine-tuned networks took longer than their policies did, as far as that broke the promise."""
        return float(self._corrections[-1]["tighter"]) if self._corrections else 1.0

    @property
    def _between(self) -> int:
        """How many corrections were not made during a search."""
        return sum(record["after"] is None for record in self._corrections)

    @contextmanager
    def searching(self, space: Space, evaluations: int) -> Iterator[None]:
        """A search with so many evaluations. One that is repeated finds the same corrections at the same points."""
        self._proposals = 0
        self._least_ms = space.costs(space.smallest)["latency"] / self.factor
        self._checks = {math.ceil(share * evaluations) for share in CHECKS} if self.measures else set()
        try:
            yield
        finally:
            self._proposals = math.inf

    def follow(self, proposals: int, best: Callable[[], Sequence[Choice]]) -> None:
        """Told how far a search is; at some points ``best`` policies are measured, and the model is corrected."""
        self._proposals = proposals
        if proposals not in self._checks or self._checked(proposals):
            return
        if choices := self.likely(best(), CHECKED):
            self._correct(choices, "the best policies so far", proposals)

    def _checked(self, proposals: int) -> bool:
        last = self._corrections[-1]["after"] if self._corrections else None
        return last is not None and last >= proposals

    def ever_fits(self, space: Space, choice: Choice) -> bool:
        """Whether a policy is within the limits, or was at some point of this search."""
        costs = space.costs(choice)
        costs["latency"] *= self.least_factor / self.factor
        return all(costs[name] <= limit * (1 + 1e-9) for name, limit in space.limits.items())

    def likely(self, ranked: Sequence[Choice], count: int) -> list[Choice]:
        """The first of those that are within the limit by what is known; where none is, of all."""
        good = [choice for choice in ranked if self.keeps_to_limit(choice)]
        return (good or list(ranked))[:count]

    def measured(self, choice: Choice) -> dict[str, Any]:
        """The record of a policy, which is measured once: ``ms``, what was ``predicted``, and how ``quiet`` it was."""
        known = self._known(choice)
        if known is None:
            timing, predicted = self._meter.timing(widths_of(choice), SESSIONS), float(self.predict([choice])[0])
            ms = timing.ratio * self._meter.original_ms
            self._journal.append("latency", choice=list(choice), ms=ms, predicted=predicted, quiet=timing.quiet)
            known = self._journal.last("latency")
            assert known is not None
        return known

    def _known(self, choice: Choice) -> dict[str, Any] | None:
        return next((r for r in self._journal.records("latency") if tuple(r["choice"]) == choice), None)

    def keeps_to_limit(self, choice: Choice) -> bool:
        """Whether a policy is within the limit: as measured, or as the corrected model predicts.

        What was measured while the machine was loud says little, and is taken for not measured.
        """
        known = self._known(choice)
        if known is None or known["quiet"] < QUIET:
            return self.factor * float(self.predict([choice])[0]) <= self.limit_ms
        return bool(self.tighter * known["ms"] <= self.limit_ms * (1 - TIGHT))

    def aim(self, space: Space, seed: int, progress: Callable[[float, str], None]) -> bool:
        """Measure some policies near the budget and correct the model by them; once in a run."""
        if self._corrections:
            return False
        rng = np.random.default_rng(seed)
        shares = [np.ones(len(space.names)), *rng.uniform(0.3, 1.0, (AIMED - 1, len(space.names)))]
        chosen = list(dict.fromkeys(space.fit(share) for share in shares))
        for number, choice in enumerate(chosen):
            self.measured(choice)
            progress((number + 1) / len(chosen), "")
        self._correct(chosen, "near the budget, before the search")
        return True

    def fast_enough(self, choices: Sequence[Choice], progress: Callable[[float, str], None]) -> list[Choice]:
        """Those of the policies that are within the limit when measured; the model is corrected when none is."""
        for number, choice in enumerate(choices):
            self.measured(choice)
            progress((number + 1) / len(choices), "")
        good = [choice for choice in choices if self.keeps_to_limit(choice)]
        if not good:
            self._correct(choices, "the best policies")
        return good

    def _correct(self, choices: Sequence[Choice], why: str, after: int | None = None) -> None:
        """By policies that are measured. Those that were loud count where all were and agree; else the factor stays."""
        records = [self.measured(choice) for choice in choices]
        quiet = [r for r in records if r["quiet"] >= QUIET]
        off = np.log([r["ms"] / r["predicted"] for r in quiet or records])
        factor = self.factor / self.tighter if self._corrections else 1 + MARGIN
        if quiet or (len(off) > 1 and np.ptp(off) < AGREE):
            factor = (1 + MARGIN) * float(np.exp(off.mean()))
        self._record(factor, why, after)

    def _record(self, factor: float, why: str, after: int | None = None, tighter: float = 1.0) -> None:
        """``after`` so many proposals of a search; otherwise another search comes."""
        if after is None and self._between >= CORRECTIONS:
            raise BudgetError(
                f"the latency budget cannot be kept: after {CORRECTIONS} corrections of the latency model by what was "
                "measured, networks are still slower than predicted. Raise --latency, or measure on a quieter machine."
            )
        if after is not None:  # the search goes on: something must be left to it
            factor = min(factor, self.limit_ms / (self.tighter * self._least_ms) * (1 - 1e-9))
        found = {"factor": factor, "tighter": self.tighter * tighter, "why": why, "after": after}
        self._corrections.append(found)
        self._journal.append("correction", **found)

    def keeps(self, upper: float, limit: float) -> bool:
        """Whether the promise is kept; if not, the limit is tightened by how much it is missed."""
        if upper <= limit:
            return True
        factor = self.factor / self.tighter
        self._record(factor, "the fine-tuned network", tighter=upper / limit * (1 + MARGIN))
        return False

    def report(self, chosen: Choice) -> dict[str, Any]:
        """What result.json holds of the model and of its corrections."""
        known = [r for r in self._journal.records("latency") if r["quiet"] >= QUIET]
        off = [abs(r["predicted"] / r["ms"] - 1) for r in known]
        return {
            **self.said,
            "original_ms": self.original_ms,
            "predicted_ms": float(self.predict([chosen])[0]),
            "corrected_ms": self.factor * float(self.predict([chosen])[0]),
            "measured_policies": len(known),
            "measured_error": float(np.mean(off)) if off else None,
            "corrections": [{"factor": r["factor"] * r["tighter"], "why": r["why"]} for r in self._corrections],
        }


class Learned(Pace):
    """By a model learned on this machine."""

    def __init__(self, model: LearnedModel, meter: Meter, asked: str, journal: Journal) -> None:
        said = {"networks": len(model.profile.samples), "block": model.block, "error": asdict(model.errors)}
        super().__init__(model.predict_all, meter, asked, journal, {"model": model.name, **said})
        self._tables = model.tables

    def within(self, settings: Sequence[Sequence[int]]) -> Predict:
        return self._tables.non_decreasing(settings)


class Believed(Pace):
    """By a model of another device, which cannot be measured here: what it says is believed."""

    measures = False

    def __init__(self, name: str, predict: Predict, meter: Meter, asked: str, journal: Journal) -> None:
        super().__init__(predict, meter, asked, journal, {"model": name}, float(predict([meter.full])[0]))

    def promise(self, final: Path, chosen: Choice, latency: Measurement) -> dict[str, Any]:
        """The limit held against what the model says."""
        value = float(self.predict([chosen])[0])
        return proof(self.limit_ms, value, value <= self.limit_ms, f"predicted by {self.said['model']}")


def proof(limit: float, value: float, met: bool, how: str) -> dict[str, Any]:
    """A limit on latency as the result tells it, in ms."""
    return {"resource": "latency", "unit": "ms", "limit": limit, "exported": value, "met": met, "how": how}
