"""Latency: measure it on ONNX Runtime, predict it with models, and hold a run to a limit.

No other package imports ONNX Runtime.
"""

from __future__ import annotations

from amc.latency.confined import ConfinedRunner
from amc.latency.load import is_profile, load_latency_model, runs_code
from amc.latency.measurement import Latency, Measurement, measure
from amc.latency.model import (
    LatencyModel,
    LatencyProblem,
    LayerShape,
    Length,
    Predictor,
    layer_shapes,
)
from amc.latency.peak import peak_memory
from amc.latency.probe import LatencyProbe
from amc.latency.session import Runner, onnx_metric

__all__ = [
    "ConfinedRunner", "Latency", "LatencyModel", "LatencyProbe", "LatencyProblem", "LayerShape", "Length",
    "Measurement", "Predictor", "Runner", "is_profile", "layer_shapes", "load_latency_model", "measure", "onnx_metric",
    "peak_memory", "runs_code",
]  # fmt: skip
