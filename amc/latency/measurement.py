"""Measure latency robustly on a noisy machine: time all models in turn, in random order, over many rounds.

The minimum shows what the machine can do. The 10th percentile is reported, since it is more repeatable.

Rounds are grouped into blocks. Every block creates new sessions, because the memory layout of a session makes the same
model about 1 % faster or slower for the lifetime of the session. A block gives one ratio of 10th percentiles to the
baseline. The reported ratio is the geometric mean over blocks, and its 95 % interval comes from Student's t on their
logarithms. Rounds within a block are correlated, so they do not count as independent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit  # scipy.stats takes a second to import

from amc.errors import ConfigError
from amc.latency.session import Inputs, Runner, denormals_as_zero

WARMUP, ROUNDS, LEAST_ROUNDS, LEAST_BLOCKS = 10, 40, 3, 6
LEAST_MS = 0.2
FINE = time.get_clock_info("process_time").resolution < 1e-5
"""Whether the system's clock of CPU time is precise enough; on Windows it is not."""
USUAL = 0.1
"""Quantile of a network's times that is taken as its usual time; unlike the minimum, it is robust to outliers."""
NOISY = 1.12
"""Largest ratio between a time and the usual time on an undisturbed machine; sessions differ by a few per cent."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference, and the ratio to the baseline with its 95 % interval."""

    min_ms: float
    p10_ms: float
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, eq=False)
class Measurement:
    """Latencies of several models, measured side by side."""

    latencies: dict[str, Latency]
    baseline: str
    rounds: int
    threads: int
    logs: NDArray[np.float64]
    """Logarithm of every block's 10th percentile in ms, ``[B, M]``."""

    @property
    def spread(self) -> float:
        """Half the widest interval of a ratio, as a share of the ratio."""
        return max((x.ratio_high - x.ratio_low) / (2 * x.ratio) for x in self.latencies.values())

    def ratio(self, name: str, to: str) -> tuple[float, float, float]:
        """A model's time as a share of another's, with its 95 % interval."""
        names = list(self.latencies)
        found = _ratios(self.logs, names.index(to))[:, names.index(name)]
        return float(found[0]), float(found[1]), float(found[2])


def measure(
    models: Mapping[str, Path],
    inputs: Inputs,
    threads: int = 1,
    seconds: float = 5.0,
    precision: float = 0.005,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Measurement:
    """Time every model on ``inputs``; the first one is the baseline.

    Blocks of 40 rounds repeat until every ratio's 95 % interval is within ``precision`` of the ratio, or ``seconds``
    have passed. There are at least six blocks; for slow models they have fewer rounds. Every timing consists of enough
    calls to take at least 0.2 ms.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, but must be at least 1.")
    names, rng = list(models), np.random.default_rng(seed)
    blocks: list[NDArray[np.float64]] = []
    start = time.perf_counter()
    while True:
        blocks.append(_block(models, inputs, threads, rng, seconds / LEAST_BLOCKS))
        spent = (time.perf_counter() - start) / max(seconds, 1e-9)
        if len(blocks) < LEAST_BLOCKS:
            if progress:
                progress(min(1.0, spent), f"block {len(blocks)} of at least {LEAST_BLOCKS}")
            continue
        found = _measurement(names, blocks, threads)
        if progress:
            progress(min(1.0, spent), f"{found.latencies[names[-1]].ratio:.3f} of the time")
        if found.spread <= precision or spent >= 1:
            return found


def _block(
    models: Mapping[str, Path], inputs: Inputs, threads: int, rng: np.random.Generator, seconds: float
) -> NDArray[np.float64]:
    """Milliseconds ``[R, M]`` of one block, with new sessions that are created in random order."""
    paths = list(models.values())
    runners = {int(i): Runner(paths[i], threads) for i in rng.permutation(len(paths))}
    with denormals_as_zero():
        return _rounds(runners, inputs, rng, seconds)


def _rounds(
    runners: Mapping[int, Runner], inputs: Inputs, rng: np.random.Generator, seconds: float
) -> NDArray[np.float64]:
    start, slowest = time.perf_counter(), 0.0
    for runner in runners.values():
        slowest = max(slowest, _warmed(runner, inputs, seconds / (4 * len(runners))))
    calls = max(1, int(np.ceil(LEAST_MS / slowest)))  # the same for all: the first of several calls is the slowest
    rows: list[NDArray[np.float64]] = []
    while len(rows) < ROUNDS and (len(rows) < LEAST_ROUNDS or time.perf_counter() - start < seconds):
        row = np.empty(len(runners))
        for index in rng.permutation(len(runners)):
            row[index] = time_call(runners[int(index)], inputs, calls)
        rows.append(row)
    return np.array(rows)


def _warmed(runner: Runner, inputs: Inputs, seconds: float) -> float:
    """Warm up with ten calls, or fewer if they take longer than ``seconds``; returns the last call's milliseconds."""
    start = time.perf_counter()
    for _ in range(WARMUP):
        ms = time_call(runner, inputs, 1)
        if time.perf_counter() - start > seconds:
            break
    return ms


def _ratios(logs: NDArray[np.float64], baseline: int) -> NDArray[np.float64]:
    """Every model's ratio to the baseline, and its 95 % interval ``[3, M]``, from blocks ``[B, M]``."""
    differences = logs - logs[:, baseline : baseline + 1]
    middle = differences.mean(0)
    half = stdtrit(len(logs) - 1, 0.975) * differences.std(0, ddof=1) / np.sqrt(len(logs))
    ratios: NDArray[np.float64] = np.exp(np.stack([middle, middle - half, middle + half]))
    return ratios


def is_usual(ms: ArrayLike, at: ArrayLike) -> NDArray[np.bool_]:
    """Which times are those of an undisturbed machine, given the usual time ``at``.

    >>> is_usual([0.95, 1.0, 1.3], at=1.0).tolist()
    [True, True, False]
    """
    times, around = np.asarray(ms, np.float64), np.asarray(at, np.float64)
    found: NDArray[np.bool_] = (times <= NOISY * around) & (times >= around / NOISY)
    return found


def _undisturbed(blocks: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The rounds in which the baseline was as fast as usual, from blocks with at least a quarter of such rounds.

    Other programs or tenants do not slow down all networks equally, which distorts ratios. If too few blocks are
    undisturbed, all rounds are used.
    """
    at = float(np.quantile(np.concatenate([block[:, 0] for block in blocks]), USUAL))
    kept = [block[is_usual(block[:, 0], at)] for block in blocks]
    good = [own for own, block in zip(kept, blocks, strict=True) if 4 * len(own) >= len(block)]
    return good if len(good) >= LEAST_BLOCKS else blocks


def _measurement(names: list[str], blocks: list[NDArray[np.float64]], threads: int) -> Measurement:
    """The summary of blocks ``[R, M]``."""
    blocks = _undisturbed(blocks)
    logs = np.log([np.percentile(block, 10, axis=0) for block in blocks])
    ratios, rounds = _ratios(logs, 0).T.tolist(), np.concatenate(blocks)
    found = {
        name: Latency(
            float(rounds[:, i].min()),
            float(np.percentile(rounds[:, i], 10)),
            float(np.median(rounds[:, i])),
            *ratios[i],
        )
        for i, name in enumerate(names)
    }
    return Measurement(found, names[0], len(rounds), threads, logs)


def time_call(runner: Runner, inputs: Inputs, calls: int) -> float:
    """Milliseconds per call: the lesser of wall-clock and CPU time, which excludes time given to other processes."""
    start, begun = time.perf_counter(), time.process_time()
    for _ in range(calls):
        runner(inputs)
    seconds, own = time.perf_counter() - start, time.process_time() - begun
    return (min(seconds, own) if FINE else seconds) * 1e3 / calls
