"""A latency model that is a command: it is given an ONNX file and prints milliseconds, from whatever device.

The command is split into words as a shell would, ``{onnx}`` is replaced by the file's path, and no shell is started.
The last line that it prints must be a number of milliseconds, or one with its unit (``3.2``, ``3.2 ms``, ``3200 us``,
``0.0032 s``). Each network is measured once and kept in the run's journal.
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
from pathlib import Path

from amc.errors import ConfigError, LatencyError
from amc.latency.model import SUSPICIOUS, LatencyProblem, Widths

COMMAND = "command:"
"""How the names of such models begin."""
PLACE = "{onnx}"
_UNITS = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3, "ns": 1e-6}
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|[-+]?inf)\s*(ms|s|us|µs|ns)?", re.IGNORECASE)


class CommandModel:
    """Milliseconds that a command prints."""

    unit = "ms"
    measures = True
    any_speed = True  # asked here, of numbers without a unit only

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
        """Keep what is needed to make and remember measurements."""
        self._problem = problem

    def predict(self, widths: Widths) -> float:
        """Measure the policy's network, or recall what it took."""
        assert self._problem is not None
        return self.measure(self._problem.cut(widths))

    def measure(self, model: bytes) -> float:
        """Measure an ONNX model, or recall what it took. Raises LatencyError."""
        problem = self._problem
        assert problem is not None
        key = hashlib.sha256("\0".join([*self._words, ""]).encode() + model).hexdigest()[:32]
        return problem.remember(key, lambda: self._measured(model, problem))

    def _measured(self, model: bytes, problem: LatencyProblem) -> float:
        with tempfile.TemporaryDirectory(prefix="amc-") as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(model)
            printed = run([word.replace(PLACE, str(path)) for word in self._words], problem.timeout)
        ms, has_unit = milliseconds(printed, self._words[0])
        if not has_unit and problem.original_ms and ms < SUSPICIOUS * problem.original_ms:
            raise LatencyError(
                f"{self._words[0]} printed {ms:g}, but this machine takes {problem.original_ms:.3g} ms for the "
                f"original: are these seconds? Print the unit too, as in '{ms:g} ms'."
            )
        problem.progress(f"{Path(self._words[0]).name}: {ms:.4g} ms")
        return ms


def run(words: list[str], timeout: float) -> str:
    """What a command prints. It and all that it has started are ended after ``timeout`` seconds, and by Ctrl-C."""
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
            f"{words[0]} has not ended after {timeout:g} s: give it longer with --latency-timeout."
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
        said = _last(err.decode(errors="replace")) or _last(out.decode(errors="replace")) or "and said nothing"
        raise LatencyError(f"{words[0]} ended with exit code {process.returncode}: {said[:200]}")
    return out.decode(errors="replace")


def milliseconds(printed: str, command: str) -> tuple[float, bool]:
    """The number in the last line that a command has printed, and whether its unit was said. Raises LatencyError."""
    line = _last(printed)
    found = _NUMBER.fullmatch(line)
    if found is None:
        said = f"{line[:80]!r}" if line else "nothing"
        raise LatencyError(f"{command} printed {said}, but its last line must be milliseconds, such as 3.2.")
    ms = float(found[1]) * _UNITS[(found[2] or "").lower()]
    if not 0 < ms < float("inf"):
        raise LatencyError(f"{command} printed {line[:80]!r}: milliseconds must be above 0.")
    return ms, bool(found[2])


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
