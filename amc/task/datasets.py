"""Splits from a user's datasets and loaders.

Cheap checks are done before the search: NaN in tensors, and classes that the network does not have. Errors that are
found later, when a sample is read, name the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from amc.config import DataConfig
from amc.errors import AmcError, DataError, first_line, is_out_of_memory
from amc.task import nested
from amc.task.nested import Nested
from amc.task.splits import Split, Splits, hold, holdout, record, split_members

_SINGLE = (torch.float16, torch.bfloat16, torch.float64)
"""Floating-point types that are converted to float32, like those of the network."""
_WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32)
"""Types of targets that are converted to int64, which losses expect for classes."""


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """A subset of a map-style dataset of (input, target), collated as its loader does."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    members: Tensor
    part: str = ""
    """Name of the dataset in errors: train, search or test."""

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        """Inputs and targets. Raises DataError with the number of the sample."""
        chosen = self.members[indices].tolist()
        inputs, targets = self._collated(chosen)
        inputs = _nested(inputs, "inputs", _SINGLE, torch.float32)
        targets = _nested(_nested(targets, "targets", _SINGLE, torch.float32), "targets", _WHOLE, torch.int64)
        for row in odd_samples(inputs):
            raise DataError(f"{self._name(chosen[row])} holds NaN or infinity.")
        for row in odd_samples(targets):
            raise DataError(f"the target of {self._name(chosen[row])} is NaN or infinite.")
        return inputs, targets

    def _collated(self, chosen: list[int]) -> tuple[Any, Any]:
        samples = [self._sample(index) for index in chosen]
        try:
            batch = self.collate(samples)
        except Exception as error:
            odd = _odd_shape(samples)
            what = f"{self._name(chosen[odd])} differs in shape from the others: " if odd is not None else ""
            raise DataError(f"{what}{_reason(error)}{_WANTED}") from error
        if isinstance(batch, Mapping):
            keys = ", ".join(map(str, batch))
            raise DataError(
                f"a sample of the {self.part} data is a dict ({keys}), but must be (input, target): a dict of inputs, "
                "and the target."
            )
        if not isinstance(batch, Sequence) or len(batch) != 2:
            count = f"{len(batch)} values" if isinstance(batch, Sequence) else f"a {type(batch).__name__}"
            raise DataError(f"a sample of the {self.part} data is {count}, but must be (input, target): put several "
                            "inputs or targets into a tuple.")  # fmt: skip
        return batch[0], batch[1]

    def _sample(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except AmcError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise DataError(f"{self._name(index)} cannot be read: {_reason(error)}{_WANTED}") from error

    def _name(self, index: int) -> str:
        return f"sample {index} of the {self.part} data" if self.part else f"sample {index}"


_WANTED = ". Samples must be (input, target), as tensors, numbers or arrays."


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error).rstrip('.')}"


def _odd_shape(samples: Iterable[Any]) -> int | None:
    """The first sample whose input's shape differs from that of sample 0."""
    shapes = [getattr(sample[0], "shape", None) if isinstance(sample, tuple | list) else None for sample in samples]
    return next((row for row, shape in enumerate(shapes) if shape != shapes[0]), None)


def _nested(value: Any, what: str, kinds: tuple[torch.dtype, ...], wanted: torch.dtype) -> Nested:
    found = nested.nested(value)
    if found is None:
        raise DataError(f"the {what} in the data must be tensors, or tuples or dicts of tensors.")
    return nested.mapped(lambda leaf: leaf.to(wanted) if leaf.dtype in kinds else leaf, found)


def odd_samples(value: Nested) -> list[int]:
    """Rows of a batch with NaN or infinity; if there are several tensors, minus infinity is allowed, as in masks.

    >>> odd_samples(torch.tensor([[0.0], [float("nan")]]))
    [1]
    """
    odd: set[int] = set()
    for leaf in nested.leaves(value):
        if not leaf.is_floating_point() or bool(torch.isfinite(leaf).all()):
            continue
        bad = ~torch.isfinite(leaf) if isinstance(value, Tensor) else leaf.isnan() | leaf.isposinf()
        odd.update(
            bad.flatten(1).any(1).nonzero().flatten().tolist() if leaf.ndim > 1 else bad.nonzero().flatten().tolist()
        )
    return sorted(odd)


def splits_of(train: Any, test: Any, search: Any, config: DataConfig, source: str = "own data") -> Splits:
    """Splits from map-style datasets of (input, target), or from DataLoaders over them.

    Calibration samples are held out from ``train``, and so is the search split if ``search`` is None.
    """
    notes: list[str] = []
    sources = {"train": _source(train, "train", notes), "test": _source(test, "test", notes)}
    count = len(sources["train"][0])
    if search is None:
        calibration, chosen, rest = holdout(count, config, config.seed, config.search)
        sources["search"] = sources["train"]
    else:
        calibration, rest = split_members(count, [min(config.calibration, count // 4)], config.seed)
        sources["search"] = _source(search, "search", notes)
        chosen = split_members(len(sources["search"][0]), [config.search], config.seed)[0]
    sources["calibration"] = sources["train"]
    everything = torch.arange(len(sources["test"][0]))
    members = {"train": rest, "calibration": calibration, "search": chosen, "test": everything}
    for part, indices in members.items():
        if len(indices) < 2:
            raise DataError(f"the {part} split has {len(indices)} samples, but needs at least 2.")
    for name in dict.fromkeys(["train", "test"] + ["search"] * (search is not None)):
        _check_tensors(sources[name][0], name)
    names = {"calibration": "train", "search": "train"} if search is None else {"calibration": "train"}
    parts: dict[str, Split] = {
        part: DatasetSplit(*sources[part], members[part], names.get(part, part)) for part in members
    }
    for part in ("calibration", "search"):  # read once, because random augmentation would change them
        parts[part] = _readable(parts[part], part)
    provenance = record(config.seed, **members)
    return Splits(
        parts["train"], parts["calibration"], parts["search"], parts["test"], None, source,
        provenance=provenance, notes=tuple(notes),
    )  # fmt: skip


def _check_tensors(dataset: Any, part: str) -> None:
    """Check all samples of a TensorDataset for NaN and infinity, which is cheap. Raises DataError."""
    if type(dataset) is not TensorDataset or len(dataset.tensors) != 2:
        return
    for row in odd_samples(dataset.tensors[0]):
        raise DataError(f"sample {row} of the {part} data holds NaN or infinity.")
    for row in odd_samples(dataset.tensors[1]):
        raise DataError(f"the target of sample {row} of the {part} data is NaN or infinite.")


def classes_of(split: Split) -> Tensor | None:
    """The targets ``[N]`` of all samples if they are integers and available without reading samples, else None."""
    if isinstance(split, DatasetSplit):
        dataset = split.dataset
        found = dataset.tensors[1] if type(dataset) is TensorDataset and len(dataset.tensors) == 2 else None
        found = found[split.members] if isinstance(found, Tensor) else None
    else:
        held = getattr(split, "targets", None)
        labels, members = getattr(split, "labels", None), getattr(split, "members", None)
        found = labels[members] if isinstance(labels, Tensor) and isinstance(members, Tensor) else held
    whole = (
        isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point() and found.dtype != torch.bool
    )
    return found if whole else None


def check_classes(part: str, split: Split, count: int) -> None:
    """Raise DataError, with the number of the sample, for a class without an output of the network."""
    classes = classes_of(split)
    if classes is None:
        return
    wrong = ((classes < 0) | (classes >= count)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        index = int(split.members[row]) if isinstance(split, DatasetSplit) else row
        raise DataError(f"sample {index} of the {part} split has the class {int(classes[row])}, but the network has "
                        f"{count} classes: 0 to {count - 1}.")  # fmt: skip


def _readable(split: Split, part: str) -> Split:
    """Load the split into memory. Raises DataError for any exception in a user's dataset."""
    try:
        return hold(split, torch.device("cpu"))
    except AmcError:
        raise
    except Exception as error:
        raise DataError(f"the {part} split: {_reason(error)}{_WANTED}") from error


def _source(data: Any, part: str, notes: list[str]) -> tuple[Any, Any]:
    """The map-style dataset of a dataset or loader, and its function that collates samples."""
    dataset, collate = (data.dataset, data.collate_fn) if isinstance(data, DataLoader) else (data, default_collate)
    plain = isinstance(dataset, str | bytes | Mapping | Tensor | nn.Module | type)  # not datasets
    able = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or plain or not able:
        raise DataError(
            f"{part} is a {type(data).__name__}, but must be a map-style dataset, or a DataLoader over one."
        )
    sampler = data.sampler if isinstance(data, DataLoader) else None
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(sampler.indices))
    elif sampler is not None and not isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        kind = type(sampler).__name__
        notes.append(f"the {part} loader's {kind} is not used: every sample is drawn as often as the others")
    return dataset, collate
