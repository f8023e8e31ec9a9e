"""Milliseconds of single layers of a finished ONNX file, for the report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from amc.latency.measurement import WARMUP
from amc.latency.operators import Named, names, read_events
from amc.latency.session import Inputs, Runner, denormals_as_zero

RUNS = 50


def layer_times(model: Path, inputs: Inputs, layers: Sequence[Named], threads: int, seconds: float) -> list[float]:
    """Mean milliseconds of every layer in the faster half of its runs.

    There are `RUNS` runs, or as many as take ``seconds``; three at least. The profiler slows down small operators. A
    layer's time includes operators that are fused with it.
    """
    known = names(onnx.load(str(model)), layers)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(model, threads, profile=Path(folder, "p"))
        end, done = time.perf_counter() + seconds, 0
        with denormals_as_zero():
            while done < WARMUP + 3 or (done < WARMUP + RUNS and time.perf_counter() < end):
                runner(inputs)
                done += 1
        runs = read_events(runner.end_profiling().read_bytes(), known)[WARMUP:]
    faster = np.sort(runs, axis=0)[: (len(runs) + 1) // 2]
    times: list[float] = faster.mean(0).round(6).tolist()
    return times
