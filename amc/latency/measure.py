"""Measuring latency so that a noisy machine does not decide: all models in turn, in random order, many rounds.

The minimum is what the machine can do; the 10th percentile is what is reported, since it repeats better. A ratio
to the baseline is taken between values of the same rounds, with a bootstrap interval over rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amc.errors import ConfigError
from amc.latency.session import Runner

WARMUP, LEAST_ROUNDS = 10, 40


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference, and the ratio to the baseline with its 95 % interval."""

    min_ms: float
    p10_ms: float
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Measurement:
    """Latencies of several models that were measured side by side."""

    latencies: dict[str, Latency]
    baseline: str
    rounds: int
    threads: int


def measure(
    models: Mapping[str, Path],
    inputs: NDArray[np.float32],
    threads: int = 1,
    seconds: float = 4.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Measurement:
    """Time every model on ``inputs [B, ...]``; the first one is the baseline.

    Rounds go on for ``seconds``, and for 40 rounds at least. A timing is of enough calls to last 0.2 ms.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, but must be at least 1.")
    names = list(models)
    runners = {name: Runner(path, threads) for name, path in models.items()}
    calls = {name: _calls(runner, inputs) for name, runner in runners.items()}
    rng = np.random.default_rng(seed)
    rows: list[list[float]] = []
    start = time.perf_counter()
    while len(rows) < LEAST_ROUNDS or time.perf_counter() - start < seconds:
        row = dict.fromkeys(names, 0.0)
        for index in rng.permutation(len(names)):
            name = names[index]
            row[name] = time_call(runners[name], inputs, calls[name])
        rows.append([row[name] for name in names])
        if progress:
            progress(min(len(rows) / LEAST_ROUNDS, (time.perf_counter() - start) / seconds))
    times = np.array(rows)
    return Measurement(
        {name: _summary(times[:, i], times[:, 0], rng) for i, name in enumerate(names)},
        names[0],
        len(rows),
        threads,
    )


def _calls(runner: Runner, inputs: NDArray[np.float32]) -> int:
    for _ in range(WARMUP):
        runner(inputs)
    return max(1, int(np.ceil(0.2 / time_call(runner, inputs, 3))))


def time_call(runner: Runner, inputs: NDArray[np.float32], calls: int) -> float:
    """Milliseconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
        runner(inputs)
    return (time.perf_counter() - start) * 1e3 / calls


def _summary(times: NDArray[np.float64], baseline: NDArray[np.float64], rng: np.random.Generator) -> Latency:
    draws = rng.integers(0, len(times), (500, len(times)))
    spread = np.percentile(times[draws], 10, axis=1) / np.percentile(baseline[draws], 10, axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    p10 = float(np.percentile(times, 10))
    return Latency(
        float(times.min()),
        p10,
        float(np.median(times)),
        p10 / float(np.percentile(baseline, 10)),
        float(low),
        float(high),
    )
