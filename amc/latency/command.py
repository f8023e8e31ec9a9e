"""A latency model that runs a command, which measures an ONNX file on any device and prints milliseconds.

The command is split into words as a shell splits it, but no shell is started. ``{onnx}`` stands for the path of the
file. The last line of its output must be a time: milliseconds, or a number with its unit (``3.2``, ``3.2 ms``,
``3200 us``, ``0.0032 s``). For each network the command runs three times, and again until its three fastest runs
agree. The fastest run counts, because whatever disturbs a device makes it slower. The run's journal keeps the result.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from amc.errors import ConfigError, LatencyError
from amc.latency.model import SUSPICIOUS, LatencyProblem, Widths

RUNS = 3, 9
"""Least and most runs of the command for one network."""
AGREEMENT = 0.02
"""The fastest runs, `RUNS[0]` of them, may differ by this share: then it is unlikely that all were disturbed."""
COMMAND = "command:"
"""Prefix of the names of such models."""
PLACE = "{onnx}"
_UNITS = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3, "ns": 1e-6}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|[-+]?inf)\s*(ms|s|us|µs|ns)?", re.IGNORECASE)


class CommandModel:
    """Latency in milliseconds as a command prints it."""

    unit = "ms"
    measures = True
    any_speed = True  # this class checks it itself, for numbers without a unit

    def __init__(self, command: str) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"the command {command!r} cannot be split into words: {error}.") from None
        if not any(PLACE in word for word in self._words):
            raise ConfigError(f"the latency model 'command:{command}' must have {PLACE} where the model's path goes.")
        self.name = COMMAND + " ".join(Path(word).name for word in self._words)
        self._problem: LatencyProblem | None = None

    def prepare(self, problem: LatencyProblem) -> None:
        """Keep the problem: it exports networks and stores measurements."""
        self._problem = problem

    def predict(self, widths: Widths) -> float:
        """Milliseconds of the policy's network, measured unless the journal has it."""
        assert self._problem is not None
        return self.measure(self._problem.cut(widths))

    def measure(self, model: bytes) -> float:
        """Milliseconds of an ONNX model, measured unless the journal has it. Raises LatencyError."""
        problem = self._problem
        assert problem is not None
        key = hashlib.sha256("\0".join([*self._words, ""]).encode() + model).hexdigest()[:32]
        return problem.remember(key, lambda: self._measured(model, problem))

    def _measured(self, model: bytes, problem: LatencyProblem) -> float:
        with tempfile.TemporaryDirectory(prefix="amc-") as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(model)
            words = [word.replace(PLACE, str(path)) for word in self._words]
            times = fastest_agree(lambda: self._run(words, problem))
        ms, slowest = times[0], times[-1]
        spread = f" ({len(times)} runs, up to {slowest:.4g} ms)" if slowest > (1 + AGREEMENT) * ms else ""
        problem.progress(f"{Path(self._words[0]).name}: {ms:.4g} ms{spread}")
        return ms

    def _run(self, words: list[str], problem: LatencyProblem) -> float:
        """Milliseconds of one run of the command. Raises LatencyError."""
        ms, has_unit = milliseconds(run(words, problem.timeout), self._words[0])
        if not has_unit and problem.original_ms and ms < SUSPICIOUS * problem.original_ms:
            raise LatencyError(
                f"{self._words[0]} printed {ms:g}, but this machine takes {problem.original_ms:.3g} ms for the "
                f"original: are these seconds? Print the unit too, as in '{ms:g} ms'."
            )
        return ms


def fastest_agree(measure: Callable[[], float]) -> list[float]:
    """Measurements in ascending order: three, and more until the three fastest agree (`RUNS`, `AGREEMENT`).

    >>> times = iter([1.3, 1.0, 1.2, 1.01, 1.0, 5.0])
    >>> fastest_agree(lambda: next(times))
    [1.0, 1.0, 1.01, 1.2, 1.3]
    """
    least, most = RUNS
    times = sorted(measure() for _ in range(least))
    while times[least - 1] > (1 + AGREEMENT) * times[0] and len(times) < most:
        times = sorted([*times, measure()])
    return times


def run(words: list[str], timeout: float) -> str:
    """Run a command and return its output.

    After ``timeout`` seconds, or on Ctrl-C, the command and all its child processes are killed. Raises LatencyError.
    """
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise LatencyError(f"cannot run {words[0]}: {error.strerror}.") from None
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise LatencyError(
            f"{words[0]} did not finish within {timeout:g} s: allow more with --latency-timeout."
        ) from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if process.returncode:
        message = _last(err.decode(errors="replace")) or _last(out.decode(errors="replace")) or "it printed nothing."
        raise LatencyError(f"{words[0]} failed with exit code {process.returncode}: {message[:200]}")
    return out.decode(errors="replace")


def milliseconds(printed: str, command: str) -> tuple[float, bool]:
    """Parse the last line of a command's output: milliseconds, and whether it names a unit. Raises LatencyError.

    >>> milliseconds("3200 us", "bench")
    (3.2, True)
    """
    line = _last(printed)
    found = _NUMBER.fullmatch(line)
    if found is None:
        printed_line = f"{line[:80]!r}" if line else "nothing"
        raise LatencyError(f"{command} printed {printed_line}, but its last line must be milliseconds, such as 3.2.")
    ms = float(found[1]) * _UNITS[(found[2] or "").lower()]
    if not 0 < ms < float("inf"):
        raise LatencyError(f"{command} printed {line[:80]!r}: milliseconds must be above 0.")
    return ms, bool(found[2])


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
