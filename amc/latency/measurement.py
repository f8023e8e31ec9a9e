"""Measuring latency so that a noisy machine does not decide: all models in turn, in random order, many rounds.

The minimum is what the machine can do; the 10th percentile is what is reported, since it repeats better.

Rounds come in blocks. Every block has sessions of its own, since where memory falls makes one and the same model a
per cent faster or slower for as long as its session lives. A block gives one ratio to the baseline, of 10th
percentiles; the ratio is the geometric mean over blocks, its interval Student's t over their logarithms. Rounds within
a block are alike and are not counted as independent.
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
"""Whether the system tells precisely enough how long a process had the processor; Windows does not."""
USUAL = 0.1
"""The quantile of a network's times that tells what it usually takes: a few lucky moments do not move it."""
NOISY = 1.12
"""How much slower or faster than usual a network may be while nothing disturbs it; sessions differ by some per cent."""


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
    """Latencies of several models that were measured side by side."""

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

    Blocks of 40 rounds go on until every ratio's 95 % interval is within ``precision`` of it, or ``seconds`` are
    over, but for six blocks at least, which have fewer rounds where the models are slow. A timing is of enough calls
    to last 0.2 ms.
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
    """Milliseconds ``[R, M]`` with new sessions, made in random order."""
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
    calls = max(1, int(np.ceil(LEAST_MS / slowest)))  # the same for all: a first call is slower than the next
    rows: list[NDArray[np.float64]] = []
    while len(rows) < ROUNDS and (len(rows) < LEAST_ROUNDS or time.perf_counter() - start < seconds):
        row = np.empty(len(runners))
        for index in rng.permutation(len(runners)):
            row[index] = time_call(runners[int(index)], inputs, calls)
        rows.append(row)
    return np.array(rows)


def _warmed(runner: Runner, inputs: Inputs, seconds: float) -> float:
    """Milliseconds of a call after ten, or after as many as the time allows."""
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
    """Which times are of an undisturbed machine, when ``at`` is the usual one."""
    times, around = np.asarray(ms, np.float64), np.asarray(at, np.float64)
    found: NDArray[np.bool_] = (times <= NOISY * around) & (times >= around / NOISY)
    return found


def _undisturbed(blocks: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The rounds in which the baseline was as fast as usual, of blocks that had enough of them.

    What slows a machine for a while, other programs or other tenants, does not slow all networks alike. A machine
    without enough undisturbed blocks is taken as it is.
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
    """Milliseconds a call, without those in which other processes had the processor."""
    start, begun = time.perf_counter(), time.process_time()
    for _ in range(calls):
        runner(inputs)
    seconds, own = time.perf_counter() - start, time.process_time() - begun
    return (min(seconds, own) if FINE else seconds) * 1e3 / calls
