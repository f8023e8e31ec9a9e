"""The measuring functions of a run. They are passed in, so that tests can use a simulated device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amc.latency.measurement import Measurement, measure
from amc.latency.probe import LatencyProbe
from amc.latency.session import Inputs
from amc.space.file_size import FileLayout


class Measure(Protocol):
    """Measures models side by side: `amc.latency.measure`, or a fake in tests."""

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
    """Creates a probe that times policies beside the original: `LatencyProbe`, or a fake in tests."""

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
    """Upper limit on the time for measuring finished files; None for no limit."""

    @classmethod
    def usual(cls) -> Instruments:
        """ONNX Runtime on this machine; ``$AMC_MEASURE_SECONDS`` limits the time for measuring finished files."""
        given = os.environ.get("AMC_MEASURE_SECONDS", "")
        try:
            return cls(seconds=max(0.0, float(given)) if given else None)
        except ValueError:
            return cls()

    def limited(self, seconds: float) -> float:
        """The seconds that a stage asks for, or the limit if that is less."""
        return seconds if self.seconds is None else min(seconds, self.seconds)
