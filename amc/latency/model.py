"""Latency models predict how many milliseconds a policy takes on a device.

A model is any object with these attributes:

=====================  ==========================================================================================
``name``               its name in reports
``unit``               ``"ms"``; anything else is refused
``prepare(problem)``   optional: called once, before the first prediction, with a `LatencyProblem`
``predict(widths)``    milliseconds of one inference, a finite number above 0, for the channels kept at every
                       site; deterministic; should take under 0.1 ms, since a search calls it often
``predict_all(rows)``  optional: the same for many policies at once, ``[B, S] -> [B]``, sites in the problem's order
``measures``           optional: True if a prediction is a measurement that takes seconds; it is then called rarely
``any_speed``          optional: True for a device over a hundred times as fast as this machine; otherwise such small
                       numbers are refused, since they are probably seconds
=====================  ==========================================================================================

`Predictor` checks everything that a model returns against this contract, and reports violations in one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amc.errors import AmcError, LatencyError, first_line
from amc.graph.channels import Axis, ModuleKind, length_of
from amc.graph.sites import Graph

LEAST = 0.5
"""Least share of the smallest network's time that a prediction may have."""
SUSPICIOUS = 0.01
"""Below this share of the original's time on this machine, predictions are probably in seconds."""

Widths = Mapping[str, int]
"""Number of kept channels by site name, in forward order."""


@dataclass(frozen=True)
class Length:
    """Length of an axis of a layer: ``constant + Σ per_channel[site] · widths[site]``.

    >>> Length(3, {"conv1": 2})({"conv1": 8})
    19
    """

    constant: int
    per_channel: Mapping[str, int]

    def __call__(self, widths: Widths) -> int:
        return self.constant + sum(n * widths[site] for site, n in self.per_channel.items())


def length_matrix(lengths: Sequence[Length], sites: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lengths as ``w @ slopes + constants`` for widths ``w [B, S]``: slopes ``[S, L]`` and constants ``[L]``.

    >>> length_matrix([Length(3, {}), Length(0, {"conv1": 2})], ["conv1"])[0]
    array([[0., 2.]])
    """
    slopes = np.array([[length.per_channel.get(site, 0) for length in lengths] for site in sites], np.float64)
    return slopes, np.array([length.constant for length in lengths], np.float64)


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer. ``inputs`` and ``outputs`` are numbers of channels, equal in a depthwise layer."""

    name: str
    kind: str
    """conv or linear."""
    inputs: Length
    outputs: Length
    taps: int
    """Elements of the kernel."""
    positions: int
    """Output positions of one inference, over all calls of the layer."""
    depthwise: bool


def _once(key: str, measure: Callable[[], float]) -> float:
    return measure()


@dataclass(frozen=True, eq=False)
class LatencyProblem:
    """The network and the search, as a latency model sees them."""

    full: Widths
    """The original's widths."""
    settings: Mapping[str, tuple[int, ...]]
    """The widths that each site may have, ascending; the last is the original's."""
    layers: tuple[LayerShape, ...]
    """In forward order."""
    original: Path
    """The original's ONNX file."""
    input_shapes: Mapping[str, tuple[int, ...]]
    """Shapes of one inference by input name, batch included."""
    threads: int
    """Number of threads to measure with."""
    cut: Callable[[Widths], bytes]
    """Creates the ONNX model of a policy. Its latency is right, but its outputs are not: weights are not re-solved."""
    remember: Callable[[str, Callable[[], float]], float] = _once
    """``remember(key, measure)`` returns the stored result for the key, or calls ``measure()`` and stores it."""
    original_ms: float | None = None
    """Milliseconds of the original on this machine, if known."""
    timeout: float = 120.0
    """Longest time in seconds that a measurement may take."""
    progress: Callable[[str], None] = lambda note: None
    """Called with a note after every measurement."""

    @property
    def smallest(self) -> Widths:
        """The smallest allowed width of every site."""
        return {site: settings[0] for site, settings in self.settings.items()}


class LatencyModel(Protocol):
    """The required part of a latency model; the module's docstring lists the optional attributes."""

    name: str
    unit: str

    def predict(self, widths: Widths) -> float: ...


class Predictor:
    """A latency model whose results are checked. Raises LatencyError."""

    def __init__(self, model: LatencyModel, problem: LatencyProblem) -> None:
        """Prepare the model and predict the original and the smallest network."""
        self.model, self.name = model, str(getattr(model, "name", type(model).__name__))
        self.measures = bool(getattr(model, "measures", False))
        self._sites = tuple(problem.full)
        self._all = getattr(model, "predict_all", None)
        unit = getattr(model, "unit", None)
        if unit != "ms":
            raise LatencyError(f"the latency model {self.name} has the unit {unit!r}, but must give 'ms'.")
        if not callable(getattr(model, "predict", None)):
            raise LatencyError(f"the latency model {self.name} has no method predict(widths).")
        prepare = getattr(model, "prepare", None)
        if prepare is not None:
            self._call("prepare", lambda: prepare(problem))
        self.smallest = 0.0
        """Milliseconds of the smallest network."""
        self.original, self.smallest = self.predict(problem.full), self.predict(problem.smallest)
        self._check(problem)

    def _check(self, problem: LatencyProblem) -> None:
        if self.smallest > self.original:
            raise LatencyError(
                f"the latency model {self.name} gives {self.smallest:g} ms for the smallest network but "
                f"{self.original:g} ms for the original: it seems to ignore the widths."
            )
        here = problem.original_ms
        if here and self.original < SUSPICIOUS * here and not getattr(self.model, "any_speed", False):
            raise LatencyError(
                f"the latency model {self.name} gives {self.original:g} ms for the original, which takes {here:.3g} ms "
                "on this machine: are these seconds? If the device is that fast, set any_speed (docs/extending.md)."
            )

    def predict(self, widths: Widths) -> float:
        """Milliseconds of one policy."""
        found = self._call("predict", lambda: self.model.predict(dict(widths)))  # a copy: the model may modify it
        return self._number(found, widths)

    def __call__(self, choices: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds ``[B]`` of the widths ``choices [B, S]``."""
        rows = np.atleast_2d(np.asarray(choices, np.int64))
        if self._all is None:
            return np.array([self.predict(dict(zip(self._sites, row, strict=True))) for row in rows.tolist()])
        try:
            found = np.asarray(self._call("predict_all", lambda: self._all(rows)), np.float64)  # type: ignore[misc]
        except (TypeError, ValueError):
            raise LatencyError(f"predict_all of the latency model {self.name} does not return numbers.") from None
        if found.shape != (len(rows),):
            raise LatencyError(
                f"predict_all of the latency model {self.name} returns an array of shape {list(found.shape)} "
                f"for {len(rows)} policies, but must return [{len(rows)}]."
            )
        wrong = np.flatnonzero(~(np.isfinite(found) & (found > 0) & (found >= LEAST * self.smallest)))
        if len(wrong):
            self._number(float(found[wrong[0]]), dict(zip(self._sites, rows[wrong[0]].tolist(), strict=True)))
        return found

    def _call(self, method: str, call: Callable[[], Any]) -> Any:
        """Call the model. Any exception in a plug-in is reported as its user's error."""
        try:
            return call()
        except AmcError:
            raise
        except Exception as error:
            raise LatencyError(
                f"the latency model {self.name} fails in {method}: {type(error).__name__}: {first_line(error)}"
            ) from error

    def _number(self, found: Any, widths: Widths) -> float:
        try:
            ms = float(found)
        except (TypeError, ValueError):
            raise LatencyError(f"the latency model {self.name} gives {found!r}, which is not a number.") from None
        if not (math.isfinite(ms) and ms > 0):
            shown = ", ".join(f"{site} {width}" for site, width in list(widths.items())[:3])
            raise LatencyError(
                f"the latency model {self.name} gives {ms} ms for the widths {shown} …: it must be above 0."
            )
        if ms < LEAST * self.smallest:
            shown = ", ".join(f"{site} {width}" for site, width in list(widths.items())[:3])
            raise LatencyError(
                f"the latency model {self.name} gives {ms:g} ms for the widths {shown} …, less than half of the "
                f"{self.smallest:g} ms that it gives for the smallest network: it seems to ignore the widths."
            )
        return ms


def layer_shapes(graph: Graph) -> tuple[LayerShape, ...]:
    """The convolutions and linear layers of a network, in forward order."""
    order = list(graph.trace.layers)
    found = []
    for layer in graph.layers:
        if layer.positions and layer.name in graph.trace.layers:
            call = graph.trace.layers[layer.name]
            kind, where = ("conv", 0) if layer.kind is ModuleKind.CONV else ("linear", -1)
            outputs = _length(layer.output, call.output[where], graph)
            inputs = outputs if layer.by_group else _length(layer.input, call.input[where], graph)
            found.append(LayerShape(layer.name, kind, inputs, outputs, layer.taps, layer.positions, layer.by_group))
    return tuple(sorted(found, key=lambda shape: order.index(shape.name)))


def _length(axis: Axis | None, length: int, graph: Graph) -> Length:
    slopes, constant = length_of(axis, length if axis is None else len(axis), len(graph.sites))
    return Length(constant, {s.name: int(n) for s, n in zip(graph.sites, slopes, strict=True) if n})
