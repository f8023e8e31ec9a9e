"""Data without labels: inputs from a folder of images, a file of arrays, or a user's object.

The parts of one set, test, search, calibration and train, are disjoint (`amc.task.splits.hold_out_all`).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from amc.config import DataConfig
from amc.errors import AmcError, DataError, first_line, is_out_of_memory
from amc.runtime.files import opened
from amc.runtime.plugins import is_plugin, load_object
from amc.task import nested
from amc.task.datasets import odd_samples
from amc.task.images import unlabelled_folder
from amc.task.nested import Nested
from amc.task.splits import LEAST_SAMPLES, Splits, hold_out_all, unlabelled_splits

MOST_BYTES = 8 << 30
"""Most bytes of the arrays in a file."""
MOST_SAMPLES = 100_000
"""Most samples that are taken from something without a length."""
_SINGLE = (torch.float16, torch.bfloat16, torch.float64)
"""Floating-point types that are converted to float32."""
_WANTED = "inputs only: tensors or arrays, or tuples or dicts of them, one sample after the other"


@dataclass(frozen=True, eq=False)
class TensorInputs:
    """Inputs in memory, ``[N, ...]``; targets are zeros."""

    inputs: Nested
    members: Tensor

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        chosen = self.members[indices]
        inputs = nested.mapped(lambda leaf: leaf[chosen], self.inputs)
        for row in odd_samples(inputs):
            raise DataError(f"sample {int(chosen[row])} of the inputs holds NaN or infinity.")
        return inputs, torch.zeros(len(chosen))


@dataclass(frozen=True, eq=False)
class DatasetInputs:
    """Inputs from a map-style dataset, collated as its loader does; targets are zeros."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    members: Tensor

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        chosen = self.members[indices].tolist()
        try:
            batch = self.collate([self.dataset[index] for index in chosen])
        except AmcError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
            raise DataError(f"the inputs cannot be read: {reason}. They must be {_WANTED}.") from error
        inputs = _inputs(batch)
        for row in odd_samples(inputs):
            raise DataError(f"sample {chosen[row]} of the inputs holds NaN or infinity.")
        return inputs, torch.zeros(len(chosen))


def load_inputs(config: DataConfig, channels: int | None = None, size: tuple[int, int] | None = None) -> Splits:
    """The splits of ``config.inputs``. ``channels`` and ``size`` (height, width) are those of images for the network.

    Raises DataError.
    """
    name = str(config.inputs)
    path = Path(name)
    if is_plugin(name):
        return splits_of_inputs(_from_plugin(name), config, path.name)
    if path.is_dir():
        return unlabelled_folder(path, config, channels, size)
    if path.suffix in (".npy", ".npz"):
        return splits_of_inputs(_read_arrays(path), config, path.name)
    if not os.path.lexists(path):
        raise DataError(f"there is no folder or file {name} for --calibration.")
    raise DataError(f"--calibration is {name}, but must be a folder of images, a .npy or .npz file, or file.py:name.")


def splits_of_inputs(data: Any, config: DataConfig, source: str = "own inputs") -> Splits:
    """Splits of inputs ``[N, ...]`` (tensors, arrays, or tuples or dicts of them), of a dataset or of a loader.

    Of a DataLoader the dataset and the collate function are used. What has no length, such as a generator, is read
    until it ends: a loader gives batches, anything else single samples.
    """
    found = _arrays(data)
    collate: Callable[[list[Any]], Any] = default_collate
    if found is None:
        if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
            data, collate = data.dataset, data.collate_fn
        if isinstance(data, str | bytes | Mapping | nn.Module | type):
            raise DataError(f"the inputs are a {type(data).__name__}, but must be {_WANTED}.")
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            found = _read_all(data)
    count = len(data) if found is None else nested.length(found)
    if count < LEAST_SAMPLES:
        raise DataError(f"there are {count} samples of inputs, but the splits need at least {LEAST_SAMPLES}.")
    members = hold_out_all(count, config)
    split: Callable[[Tensor], Any] = (
        (lambda chosen: DatasetInputs(data, collate, chosen))
        if found is None
        else (lambda chosen: TensorInputs(found, chosen))
    )
    parts = {part: split(chosen) for part, chosen in members.items()}
    return unlabelled_splits(parts, members, config.seed, source)


def _from_plugin(name: str) -> Any:
    """What ``file.py:name`` names, or gives where it is a function or a class."""
    found = load_object(name)
    if not callable(found) or isinstance(found, Tensor | nn.Module | DataLoader):
        return found
    try:
        return found()
    except AmcError:
        raise
    except Exception as error:
        raise DataError(f"{name} fails: {type(error).__name__}: {first_line(error)}") from error


def _arrays(data: Any) -> Nested | None:
    """Inputs that are whole arrays ``[N, ...]``; None for anything else."""
    if isinstance(data, np.ndarray | Tensor):
        values: Any = _tensor(data)
    elif isinstance(data, Mapping) and data and all(isinstance(v, np.ndarray | Tensor) for v in data.values()):
        values = {str(key): _tensor(value) for key, value in data.items()}
    elif isinstance(data, tuple) and data and all(isinstance(v, np.ndarray | Tensor) for v in data):
        values = tuple(map(_tensor, data))
    else:
        return None
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in nested.leaves(values)}
    if len(lengths) != 1 or None in lengths:
        raise DataError(f"the inputs have different numbers of samples: {', '.join(map(str, lengths))}.")
    return values  # type: ignore[no-any-return]


def _tensor(value: Any) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    except TypeError:
        raise DataError(f"the inputs hold an array of {value.dtype}, but must hold numbers.") from None
    return tensor.detach().to(torch.float32) if tensor.dtype in _SINGLE else tensor.detach()


def _inputs(batch: Any) -> Nested:
    """A batch as a loader gives it: a list of one tensor, as TensorDataset makes, is that tensor."""
    if isinstance(batch, list | tuple) and len(batch) == 1:
        batch = batch[0]
    found = nested.nested(batch)
    if found is None or any(leaf.ndim == 0 for leaf in nested.leaves(found)):
        raise DataError(f"a batch of the inputs is a {type(batch).__name__}, but must be {_WANTED}.")
    return nested.mapped(lambda leaf: leaf.to(torch.float32) if leaf.dtype in _SINGLE else leaf, found)


def _read_all(data: Any) -> Nested:
    """All samples of something without a length."""
    if not isinstance(data, Iterable):
        raise DataError(f"the inputs are a {type(data).__name__}, but must be {_WANTED}.")
    try:
        items = list(islice(data, MOST_SAMPLES))
    except AmcError:
        raise
    except Exception as error:
        raise DataError(f"the inputs cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not items:
        raise DataError("there are 0 samples of inputs.")
    try:
        batches = items if isinstance(data, DataLoader) else [default_collate([item]) for item in items]
        return nested.joined([_inputs(batch) for batch in batches])
    except (TypeError, RuntimeError, ValueError) as error:
        raise DataError(f"the inputs cannot be put into one array: {first_line(error)}") from error


def _read_arrays(path: Path) -> Any:
    """The array of a .npy file; of a .npz file its only array, or a dict of all. Pickled objects are refused."""
    try:
        with os.fdopen(opened(path), "rb") as file:
            if path.suffix == ".npy":
                _check_array(file, os.fstat(file.fileno()).st_size)
                file.seek(0)
                return np.load(file, allow_pickle=False)
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
                if size > MOST_BYTES:
                    raise ValueError(f"its arrays have {size / 2**30:.1f} GiB, more than {MOST_BYTES >> 30}")
                if len(archive.infolist()) > nested.MOST_TENSORS:
                    raise ValueError(f"it holds {len(archive.infolist())} arrays")
                for entry in archive.infolist():
                    with archive.open(entry) as array:
                        _check_array(array, entry.file_size)
            file.seek(0)
            with np.load(file, allow_pickle=False) as held:
                found = {name: held[name] for name in held.files}
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise DataError(f"cannot read the arrays in {path}: {reason.rstrip('.')}.") from None
    if not found:
        raise DataError(f"{path} holds no arrays.")
    if any(array.ndim == 0 for array in found.values()):
        name = next(name for name, array in found.items() if array.ndim == 0)
        raise DataError(f"'{name}' in {path} is a single number, not one entry for each sample.")
    return next(iter(found.values())) if len(found) == 1 else found


def _check_array(file: Any, held: int) -> None:
    """Raise ValueError where the header of an array of ``held`` bytes names more, or more than is sensible."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    left = held - file.tell()
    if size > min(left, MOST_BYTES):
        raise ValueError(f"its header names {size:,} bytes, but it holds {left:,}")
