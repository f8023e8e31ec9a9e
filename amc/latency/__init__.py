"""Latency on ONNX Runtime, the only room that knows it."""

from __future__ import annotations

from amc.latency.measure import Latency, Measurement, measure
from amc.latency.probe import LatencyProbe
from amc.latency.session import Runner

__all__ = ["Latency", "LatencyProbe", "Measurement", "Runner", "measure"]
