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

    @property
    def spread(self) -> float:
        """Half the widest interval of a ratio, as a share of the ratio."""
        return max((x.ratio_high - x.ratio_low) / (2 * x.ratio) for x in self.latencies.values())


def measure(
    models: Mapping[str, Path],
    inputs: NDArray[np.float32],
    threads: int = 1,
    seconds: float = 5.0,
    precision: float = 0.005,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Measurement:
    """Time every model on ``inputs [B, ...]``; the first one is the baseline.

    Rounds go on until every ratio's 95 % interval is within ``precision`` of it, or ``seconds`` are over, but for
    40 rounds at least. A timing is of enough calls to last 0.2 ms.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, but must be at least 1.")
    names = list(models)
    runners = {name: Runner(path, threads) for name, path in models.items()}
    calls = {name: _calls(runner, inputs) for name, runner in runners.items()}
    rng = np.random.default_rng(seed)
    rows: list[list[float]] = []
    start = time.perf_counter()
    while True:
        row = dict.fromkeys(names, 0.0)
        for index in rng.permutation(len(names)):
            name = names[index]
            row[name] = time_call(runners[name], inputs, calls[name])
        rows.append([row[name] for name in names])
        if len(rows) % LEAST_ROUNDS == 0:
            found = _measurement(names, np.array(rows), threads, seed)
            spent = (time.perf_counter() - start) / seconds
            if progress:
                progress(min(1.0, spent), f"{found.latencies[names[-1]].ratio:.3f} of the time")
            if found.spread <= precision or spent >= 1:
                return found


def _measurement(names: list[str], times: NDArray[np.float64], threads: int, seed: int) -> Measurement:
    """The summary of all rounds ``[R, M]``; the bootstrap draws the same rounds for every model."""
    draws = np.random.default_rng(seed).integers(0, len(times), (500, len(times)))
    p10, spread = np.percentile(times, 10, axis=0), np.percentile(times[draws], 10, axis=1)  # [M], [500, M]
    low, high = np.percentile(spread / spread[:, :1], [2.5, 97.5], axis=0)
    found = {
        name: Latency(
            float(times[:, i].min()),
            float(p10[i]),
            float(np.median(times[:, i])),
            float(p10[i] / p10[0]),
            float(low[i]),
            float(high[i]),
        )
        for i, name in enumerate(names)
    }
    return Measurement(found, names[0], len(times), threads)


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
