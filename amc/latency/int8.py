"""Static quantisation: 8-bit weights and activations, as pairs of quantise and dequantise operators (QDQ).

The fastest types depend on the CPU: x86 prefers unsigned activations with signed weights, ARM signed ones, and scales
may be per tensor or per channel. So all of these settings are tried, scored and timed side by side, and the fastest
whose metric holds is chosen. On x86 without VNNI, sums of 8-bit products saturate, so 7-bit weights are tried too.
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
from amc.task import nested
from amc.task.nested import Feeds

TOLERANCE = 0.01
"""A setting is accurate enough when its metric is at most this much below the float model's."""
WEIGHTY = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


@dataclass(frozen=True)
class Setting:
    """How a model is quantised. Weights are always signed."""

    signed: bool
    """Whether activations are signed."""
    per_channel: bool
    """Whether the weights of every output channel have their own scale."""
    reduced: bool = False
    """Weights of 7 bits."""

    @property
    def name(self) -> str:
        """As in ``u8s8 per channel``: activations, weights."""
        weights = "s7" if self.reduced else "s8"
        return f"{'s8' if self.signed else 'u8'}{weights} per {'channel' if self.per_channel else 'tensor'}"


def settings(flags: frozenset[str]) -> tuple[Setting, ...]:
    """The settings worth trying on a CPU with these flags.

    >>> [setting.name for setting in settings(frozenset({"avx2", "avx512_vnni"}))]
    ['u8s8 per tensor', 'u8s8 per channel', 's8s8 per channel']
    """
    usual = (Setting(False, False), Setting(False, True), Setting(True, True))
    x86_without_vnni = "avx2" in flags and not any("vnni" in flag for flag in flags)
    return (*usual, Setting(False, False, True), Setting(False, True, True)) if x86_without_vnni else usual


class CalibrationBatches:
    """Iterates over batches with the interface of `onnxruntime.quantization.CalibrationDataReader`."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Feeds | None:
        """The next batch; None after the last."""
        return next(self._batches, None)


def quantise(source: Path, target: Path, setting: Setting, calibration: Sequence[Feeds]) -> None:
    """Write the 8-bit model of ``source`` to ``target``; ranges are min-max on ``calibration``. Raises ExportError."""
    with _without_warnings():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        try:
            model = onnx.load(str(source))
            skip_identities(model)
            names = [value.name for value in model.graph.input]
            quantize_static(
                model,
                str(target),
                CalibrationBatches([nested.under(feeds, names) for feeds in calibration]),
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
    """Silence the quantiser: it advises, through the root logger, a preprocessing that amc's exports do not need."""
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
    """Names of the convolutions and matrix products that the runtime computes in float, and the number of all."""
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
    """Names of the convolutions and matrix products that the runtime computes in float."""
    layers: int
    """Number of all convolutions and matrix products."""

    def holds(self, metric: float) -> bool:
        """Whether the metric is at most `TOLERANCE` below the float model's ``metric``."""
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
    """Write the 8-bit model of ``source`` with the best setting to ``target``; returns that setting and all tried ones.

    ``score(path)`` gives a model's metric. The context ``measuring()`` is entered while ``instruments`` time models.
    If no setting is accurate enough, the most accurate one is chosen.
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
    """The fastest setting that is accurate enough beside a float model's ``metric``; else the most accurate."""
    good = [trial for trial in trials if trial.holds(metric)]
    return min(good, key=lambda t: t.ratio) if good else max(trials, key=lambda t: (t.metric, -t.ratio))
