"""Networks from ONNX files: read, run on ONNX Runtime in a process of its own, translated and compared with that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amc.config import Config, DataConfig
from amc.deploy.export import OPSETS, check_parity
from amc.errors import ExportError, ModelError, first_line
from amc.latency import ConfinedRunner
from amc.onnx_import import OnnxGraph, OnnxModel, build_model, check_example, read_graph
from amc.onnx_import.node import DTYPES
from amc.task import Splits, load_data, nested
from amc.task.inputs import splits_of_inputs
from amc.task.nested import Feeds, Nested

FEW = 4
"""Samples by which the module is compared with the file."""
EXACT = 1e-4
"""Largest accepted difference, relative to the largest output."""
OPEN_SIZE = 224
"""A size that a file leaves open, where inputs are made up."""


def is_onnx(name: str) -> bool:
    """Whether a network's name is that of an ONNX file."""
    return name.endswith(".onnx")


def open_onnx(config: Config) -> tuple[OnnxModel, Splits]:
    """The network in the configuration's ONNX file, and the data; images have the size that the file says.

    Raises ModelError, DataError or ExportError in one line.
    """
    if config.model.weights not in (None, "random"):
        raise ModelError(f"--weights {config.model.weights} is not for an ONNX file, which has its own.")
    graph = read_graph(Path(config.model.name))
    channels, size = _image(graph)
    splits = load_data(config.data, channels, size)
    return build_checked(graph, splits)


def open_onnx_alone(config: Config) -> tuple[OnnxModel, Splits]:
    """The network, and made-up inputs of the shapes that the file says, to look at the network only."""
    graph = read_graph(Path(config.model.name))
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {}
    for name, entry in graph.inputs.items():
        sizes = [10, *(size or OPEN_SIZE for size in entry.shape[1:])]
        dtype = DTYPES[entry.dtype]
        random = torch.randn(sizes, generator=generator) if dtype.is_floating_point else torch.zeros(sizes)
        made[name] = random.to(dtype)
    data = splits_of_inputs(made if len(made) > 1 else next(iter(made.values())), DataConfig(), "made-up inputs")
    return build_checked(graph, data)


def load_onnx(path: str | Path, splits: Splits) -> tuple[OnnxModel, Splits]:
    """The network in an ONNX file, for these data."""
    return build_checked(read_graph(Path(path)), splits)


def build_checked(graph: OnnxGraph, splits: Splits) -> tuple[OnnxModel, Splits]:
    """Translate a graph, and compare it with ONNX Runtime on the first samples of the search split."""
    inputs, _ = splits.search.fetch(torch.arange(min(FEW, len(splits.search))))
    names = list(graph.inputs)
    with ConfinedRunner(graph.path) as runner:
        first = _named(nested.mapped(lambda leaf: leaf[:1], inputs), names)
        known = _Known(runner, graph.interface.fixed_batch is not None)
        check_example(graph, first)
        known.outputs({name: leaf.numpy() for name, leaf in first.items()})  # what hangs or bursts does so there
        model = build_model(graph, first)
        try:
            check_parity(model, inputs, known, EXACT)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(
                f"{graph.path} works for one sample, but not for several ({first_line(error)[:150]}): export it "
                "with an open batch size."
            ) from error
    return model, _with_note(graph, splits)


def _named(inputs: Nested, names: list[str]) -> dict[str, torch.Tensor]:
    """The inputs by the file's names."""
    if isinstance(inputs, dict):
        return inputs
    leaves = nested.leaves(inputs)
    if len(leaves) != len(names):
        raise ModelError(
            f"the network takes {len(names)} inputs ({', '.join(names)}), but the data have {len(leaves)}."
        )
    return dict(zip(names, leaves, strict=True))


class _Known:
    """Runs the file, sample by sample where it is for a batch of 1 only."""

    def __init__(self, runner: ConfinedRunner, fixed: bool) -> None:
        self._runner, self._fixed = runner, fixed

    def outputs(self, feeds: Feeds) -> list[NDArray[Any]]:
        count = len(next(iter(feeds.values())))
        if not self._fixed or count == 1:
            return self._runner.outputs(feeds)
        rows = [self._runner.outputs({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(count)]
        try:
            return [np.concatenate(column) for column in zip(*rows, strict=True)]
        except ValueError:
            raise ExportError("the network's outputs differ in shape from sample to sample.") from None


def _image(graph: OnnxGraph) -> tuple[int | None, tuple[int, int] | None]:
    """Channels, and height and width, of a file's only input, where it is an image of known size."""
    shapes = [entry.shape for entry in graph.inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return None, None
    _, channels, height, width = shapes[0]
    return channels if channels in (1, 3) else None, (height, width) if height and width else None


def _with_note(graph: OnnxGraph, splits: Splits) -> Splits:
    opset = graph.interface.opset
    if OPSETS[0] <= opset <= OPSETS[1]:
        return splits
    note = f"{graph.path.name} has opset {opset}; model.onnx gets that of torch's exporter, {OPSETS[0]} or newer"
    return replace(splits, notes=(*splits.notes, note))
