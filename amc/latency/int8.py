"""A statically quantised model: 8-bit weights and activations, as quantise and dequantise pairs (QDQ) around operators.

Which types a CPU is fast with differs: on x86 unsigned activations with signed weights, on ARM signed ones; and one
scale a tensor or one a channel. So the few settings are tried, looked into, scored and timed side by side, and the
fastest whose metric holds is taken. Without VNNI, x86's sums of 8-bit products saturate: there weights of 7 bits are
tried as well.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from amc.errors import ExportError, first_line
from amc.latency.instruments import Instruments
from amc.latency.session import Inputs
from amc.operators.branches import skip_identities
from amc.runtime.provenance import cpu_flags
from amc.task.nested import Feeds

TOLERANCE = 0.01
"""A setting holds when its metric is at most this below the float model's."""
WEIGHTY = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


@dataclass(frozen=True)
class Setting:
    """How a model is quantised. Weights are always signed."""

    signed: bool
    """Whether activations are."""
    per_channel: bool
    """Whether every output channel's weights have a scale of their own."""
    reduced: bool = False
    """Weights of 7 bits."""

    @property
    def name(self) -> str:
        """As in ``u8s8 per channel``: activations, weights."""
        weights = "s7" if self.reduced else "s8"
        return f"{'s8' if self.signed else 'u8'}{weights} per {'channel' if self.per_channel else 'tensor'}"


def settings(flags: frozenset[str]) -> tuple[Setting, ...]:
    """The settings that are worth trying on a CPU with these flags."""
    usual = (Setting(False, False), Setting(False, True), Setting(True, True))
    x86_without_vnni = "avx2" in flags and not any("vnni" in flag for flag in flags)
    return (*usual, Setting(False, False, True), Setting(False, True, True)) if x86_without_vnni else usual


class CalibrationBatches:
    """Batches of inputs, one after the other, as `onnxruntime.quantization.CalibrationDataReader` gives them."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Feeds | None:
        """The next batch; None after the last."""
        return next(self._batches, None)


def quantise(source: Path, target: Path, setting: Setting, calibration: Sequence[Feeds]) -> None:
    """Write ``source`` in 8 bits, with ranges (minimum, maximum) seen on ``calibration``. Raises ExportError."""
    with _without_warnings():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        try:
            model = onnx.load(str(source))
            skip_identities(model)
            quantize_static(
                model,
                str(target),
                CalibrationBatches(calibration),
                QuantFormat.QDQ,
                activation_type=QuantType.QInt8 if setting.signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=setting.per_channel,
                reduce_range=setting.reduced,
            )
        except Exception as error:  # noqa: BLE001  (the tool's errors share no base class)
            raise ExportError(f"{source.name} cannot be quantised: {first_line(error)}") from None


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The tool warns, through the root logger, of preparations that an export of amc's does not need."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def in_float(model: Path) -> tuple[list[str], int]:
    """Convolutions and matrix products that the runtime leaves in float, and how many there are in all."""
    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        optimised = Path(folder, "optimised.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(str(optimised)).graph.node
    left = [node.name or node.output[0] for node in nodes if node.op_type in WEIGHTY]
    whole = sum(node.op_type.startswith(("QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger")) for node in nodes)
    return left, len(left) + whole


@dataclass(frozen=True)
class TriedSetting:
    """A setting that was tried."""

    name: str
    metric: float
    ratio: float
    """Time as a share of the float model's."""
    in_float: tuple[str, ...]
    """Convolutions and matrix products that the runtime leaves in float."""
    layers: int
    """How many there are in all."""

    def holds(self, metric: float) -> bool:
        """Whether its metric is good enough beside the float model's."""
        return self.metric >= metric - TOLERANCE


def fastest(
    source: Path,
    target: Path,
    calibration: Sequence[Feeds],
    score: Callable[[Path], float],
    inputs: Inputs,
    threads: int = 1,
    progress: Callable[[float, str], None] = lambda share, note: None,
    measuring: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    instruments: Instruments = Instruments(),  # noqa: B008  (it is immutable)
) -> tuple[TriedSetting, list[TriedSetting]]:
    """Write ``source`` in 8 bits to ``target`` by the best setting; gives that one and all that were tried.

    ``score(path)`` is a model's metric, ``measuring()`` is entered while models are timed, by ``instruments``. When no
    setting holds, the most accurate is taken.
    """
    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        files, failed = {}, []
        tried = settings(cpu_flags())
        for index, setting in enumerate(tried):
            path = Path(folder, f"{index}.onnx")
            progress(index / (2 * len(tried)), f"quantising: {setting.name}")
            try:
                quantise(source, path, setting, calibration)
                files[setting.name] = (path, score(path), in_float(path))
            except ExportError as error:
                failed.append(str(error))
        if not files:
            raise ExportError(failed[0])
        with measuring():
            models = {"float": source, **{name: path for name, (path, _, _) in files.items()}}
            times = instruments.measure(models, inputs, threads, instruments.limited(4.0), precision=0.01).latencies
        trials = [
            TriedSetting(name, metric, times[name].ratio, tuple(left), layers)
            for name, (_, metric, (left, layers)) in files.items()
        ]
        best = choose(trials, score(source))
        target.write_bytes(files[best.name][0].read_bytes())
    return best, trials


def choose(trials: Sequence[TriedSetting], metric: float) -> TriedSetting:
    """The fastest that holds beside a float model's ``metric``; else the most accurate."""
    good = [trial for trial in trials if trial.holds(metric)]
    return min(good, key=lambda t: t.ratio) if good else max(trials, key=lambda t: (t.metric, -t.ratio))
