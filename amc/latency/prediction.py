"""Predict: the latency of policies in milliseconds, for the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.latency.fitted import fitted
from amc.latency.learned import Tables
from amc.latency.model import LatencyProblem, Predictor
from amc.latency.profile import LearnedModel
from amc.space.budget import NOTHING
from amc.space.resources import CostModel, Costs
from amc.space.sites import Choice, Floats

Predict = Callable[[ArrayLike], NDArray[np.float64]]
"""Milliseconds ``[B]`` of widths ``[B, S]``."""


@dataclass(frozen=True, eq=False)
class LatencyPrediction:
    """A latency model in a run, before any correction."""

    predict: Predict
    original_ms: float
    """Milliseconds of the original; a relative limit is a share of it."""
    facts: Mapping[str, Any]
    """What result.json reports about the model."""
    tables: Tables | None = None
    """The tables of a learned model; None for other models."""

    @classmethod
    def learned(cls, model: LearnedModel, original_ms: float) -> LatencyPrediction:
        """Predict with a model learned from a profile of this machine."""
        facts = {"model": model.name, "networks": len(model.profile.samples), "block": model.block,
                 "error": asdict(model.errors)}  # fmt: skip
        return cls(model.predict_all, original_ms, facts, model.tables)

    @classmethod
    def fitted(cls, predictor: Predictor, problem: LatencyProblem) -> LatencyPrediction:
        """Predict with a model fitted to a device on which every measurement takes seconds."""
        model = fitted(predictor, problem)
        facts = {"model": predictor.name, "networks": model.networks, "left_out_error": model.error}
        return cls(model.predict_all, predictor.original, facts)

    @classmethod
    def of_device(cls, predictor: Predictor) -> LatencyPrediction:
        """Predict with the user's model of a device that cannot be measured here."""
        return cls(predictor, predictor.original, {"model": predictor.name})

    def ms(self, choice: Choice) -> float:
        """Milliseconds of one policy."""
        return float(self.predict([choice])[0])

    def non_decreasing(self, settings: Sequence[Sequence[int]]) -> Predict:
        """The model for these settings; with a learned model, a wider setting never costs less."""
        return self.predict if self.tables is None else self.tables.non_decreasing(settings)


class CorrectedCosts:
    """Exact costs and ``latency`` in ms, which is the prediction times a factor. Immutable, like the space.

    >>> from amc.latency.prediction import CorrectedCosts
    >>> class Exact:
    ...     def costs(self, choices):
    ...         return {"macs": np.sum(choices, 1)}
    >>> costs = CorrectedCosts(Exact(), lambda rows: np.array([3.0]), 1.1).costs([[4, 8]])
    >>> float(costs["latency"][0]), int(costs["macs"][0])
    (3.3000000000000003, 12)
    """

    def __init__(self, exact: CostModel, predict: Predict, factor: float) -> None:
        self._exact, self._predict, self._factor = exact, predict, factor

    def costs(self, choices: ArrayLike) -> Mapping[str, Floats]:
        """Costs ``[B]`` by resource of the settings ``[B, S]``."""
        exact = self._exact.costs(choices)
        ways = {name: partial(exact.__getitem__, name) for name in exact}
        return Costs({**ways, "latency": partial(self._latency, choices)})

    def _latency(self, choices: ArrayLike) -> Floats:
        return self._factor * self._predict(choices)


def effective_widths(predict: Predict, settings: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The widths of every site from which the next wider one takes more time.

    ONNX Runtime computes channels in blocks, so a width inside a block takes as long as the whole block. Each site is
    tested with all others at full width.

    >>> effective_widths(lambda rows: np.ceil(np.array(rows)[:, 0] / 8), [(4, 8, 12, 16)])
    ((8, 16),)
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
