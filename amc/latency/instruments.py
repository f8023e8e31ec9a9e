"""What times networks in a run. It is given to a run, so that tests can give a device that is made up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amc.latency.measurement import Measurement, measure
from amc.latency.probe import LatencyProbe
from amc.latency.session import Inputs
from amc.space.resources import FileLayout


class Measure(Protocol):
    """Times models side by side: `amc.latency.measure`, or a stand-in."""

    def __call__(
        self,
        models: Mapping[str, Path],
        inputs: Inputs,
        threads: int = 1,
        seconds: float = 5.0,
        precision: float = 0.005,
        seed: int = 0,
        progress: Callable[[float, str], None] | None = None,
    ) -> Measurement: ...


class MakeProbe(Protocol):
    """Makes what times policies beside the original: `LatencyProbe`, or a stand-in."""

    def __call__(
        self, original: Path, layout: FileLayout, inputs: Inputs, threads: int = 1, original_ms: float | None = None
    ) -> LatencyProbe: ...


@dataclass(frozen=True)
class Instruments:
    """The probe for policies and the measurement of finished files.

    >>> Instruments(seconds=0.2).limited(20.0)
    0.2
    """

    probe: MakeProbe = LatencyProbe
    measure: Measure = measure
    seconds: float | None = None
    """Longest that finished files are measured for, whatever a stage wants."""

    @classmethod
    def usual(cls) -> Instruments:
        """ONNX Runtime here; ``$AMC_MEASURE_SECONDS`` shortens the measurements of finished files."""
        given = os.environ.get("AMC_MEASURE_SECONDS", "")
        try:
            return cls(seconds=max(0.0, float(given)) if given else None)
        except ValueError:
            return cls()

    def limited(self, seconds: float) -> float:
        """Seconds to measure for, where a stage wants so many."""
        return seconds if self.seconds is None else min(seconds, self.seconds)
