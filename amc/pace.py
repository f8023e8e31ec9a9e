"""Latency in a run: measured, predicted, limited, corrected, and the promise.

The search asks a latency model. What it is wrong by near the budget is found out on the runtime, at three times: on a
few policies before the search, on the best ones after it, and on the fine-tuned network. Each time the model is
corrected by a factor; where the budget then does not hold, the run goes back and searches under the corrected model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.budget import Space, is_absolute, parse_limit
from amc.errors import BudgetError
from amc.journal import Journal
from amc.latency import Measurement
from amc.latency.profile import LearnedModel
from amc.policy import Choice
from amc.resources import CostModel, Costs, Floats

Predict = Callable[[ArrayLike], NDArray[np.float64]]
"""Milliseconds ``[B]`` of widths ``[B, S]``."""

AIMED, SESSIONS = 4, 3
"""Policies near the budget that are measured before the search, and sessions for each measured policy."""
CORRECTIONS = 6
"""So often a run is corrected before it gives up."""
MARGIN, TIGHT = 0.015, 0.005
"""By so much less than the limit is aimed at, since a measurement of some seconds leaves as much open; and by so much
less must a policy take that is fine-tuned."""
NOTHING = 0.02
"""A share of what a site's whole range is worth; a step that saves less saves nothing."""


class Paced:
    """Exact costs, and latency in ms as a model predicts it, corrected by a factor."""

    def __init__(self, exact: CostModel, predict: Predict, factor: float) -> None:
        self._exact, self._predict, self._factor = exact, predict, factor

    def costs(self, choices: ArrayLike) -> Mapping[str, Floats]:
        exact = self._exact.costs(choices)
        ways = {name: partial(exact.__getitem__, name) for name in exact}
        return Costs({**ways, "latency": lambda: self._factor * self._predict(choices)})


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

    def ratio(self, widths: Sequence[int], sessions: int = 1) -> float: ...


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
        return proof(
            limit, value, self.keeps(value, limit), "measured beside the original, upper end of the 95 % interval"
        )

    @property
    def factor(self) -> float:
        """By what the model's predictions are corrected."""
        last = self._journal.last("correction")
        return 1.0 if last is None else float(last["factor"])

    def measured(self, choice: Choice) -> float:
        """Milliseconds of a policy, measured once and remembered."""
        for record in self._journal.records("latency"):
            if tuple(record["choice"]) == choice:
                return float(record["ms"])
        ms = self._meter.ratio(choice, SESSIONS) * self._meter.original_ms
        self._journal.append("latency", choice=list(choice), ms=ms, predicted=float(self.predict([choice])[0]))
        return ms

    def aim(self, space: Space, seed: int, progress: Callable[[float, str], None]) -> bool:
        """Measure some policies near the budget and correct the model by them; once in a run."""
        if self._journal.last("correction") is not None:
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
        good = [choice for choice in choices if self.measured(choice) <= self.limit_ms * (1 - TIGHT)]
        if not good:
            self._correct(choices, "the best policies")
        return good

    def _correct(self, choices: Sequence[Choice], why: str) -> None:
        measured = np.array([self.measured(choice) for choice in choices])
        self._record(float(np.exp(np.mean(np.log(measured / self.predict(choices))))) * (1 + MARGIN), why)

    def _record(self, factor: float, why: str) -> None:
        done = list(self._journal.records("correction"))
        if len(done) >= CORRECTIONS:
            raise BudgetError(
                f"the latency budget cannot be kept: after {len(done)} corrections of the latency model by what was "
                "measured, networks are still slower than predicted. Raise --latency, or measure on a quieter machine."
            )
        self._journal.append("correction", factor=factor, why=why)

    def keeps(self, upper: float, limit: float) -> bool:
        """Whether the promise is kept; if not, the model is corrected by how much it is missed."""
        if upper <= limit:
            return True
        self._record(self.factor * upper / limit * (1 + MARGIN), "the fine-tuned network")
        return False

    def report(self, chosen: Choice) -> dict[str, Any]:
        """What result.json holds of the model and of its corrections."""
        known = list(self._journal.records("latency"))
        off = [abs(r["predicted"] / r["ms"] - 1) for r in known]
        return {
            **self.said,
            "original_ms": self.original_ms,
            "predicted_ms": float(self.predict([chosen])[0]),
            "corrected_ms": self.factor * float(self.predict([chosen])[0]),
            "measured_policies": len(known),
            "measured_error": float(np.mean(off)) if off else None,
            "corrections": [{"factor": r["factor"], "why": r["why"]} for r in self._journal.records("correction")],
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
