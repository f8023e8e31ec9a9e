"""The table of layers in result.json: widths, parameters, MACs and times before and after."""

from __future__ import annotations

import contextlib
from typing import Any

from amc.deploy.layers import OnnxLayer, onnx_layers
from amc.errors import ExportError
from amc.latency.layer_times import layer_times
from amc.pipeline.record import Record
from amc.task import nested

SECONDS = 1.0
"""Time for profiling each of the two files."""


def layer_table(record: Record) -> list[dict[str, Any]]:
    """One entry for each layer of original.onnx, with its counterpart in model.onnx, or null if it was removed.

    Empty if the layers of a file cannot be read.
    """
    try:
        original, final = (_layers(record, name) for name in ("original.onnx", "model.onnx"))
    except ExportError:
        return []
    return [
        {
            "name": layer.label,
            "operator": layer.operator,
            "original": _entry(layer, ms),
            "final": _entry(*final[name]) if name in final else None,
        }
        for name, (layer, ms) in original.items()
    ]


def _layers(record: Record, file: str) -> dict[str, tuple[OnnxLayer, float | None]]:
    """The layers of a file with their milliseconds, by the name of their output."""
    path, example = record.folder / file, record.task.example
    layers = onnx_layers(path, example)
    times: list[float | None] = [None] * len(layers)
    if layers:
        seconds, inputs = record.instruments.limited(SECONDS), nested.feeds(example)
        with record.lock.exclusive(), contextlib.suppress(ExportError):
            times = list(layer_times(path, inputs, layers, record.config.latency_threads, seconds))
    return {layer.name: (layer, ms) for layer, ms in zip(layers, times, strict=True)}


def _entry(layer: OnnxLayer, ms: float | None) -> dict[str, Any]:
    return {"inputs": layer.inputs, "outputs": layer.outputs, "params": layer.params, "macs": layer.macs, "ms": ms}
