"""Splits: labelled samples that are read by index, and how they are drawn with a seed and recorded.

Because a split is read by index, any order of training is a permutation, and training can resume at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.config import DataConfig
from amc.errors import ConfigError
from amc.task import nested
from amc.task.nested import Nested


class Split(Protocol):
    """Labelled samples, read by index."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        """Inputs ``[B, ...]`` and targets of these samples; augmented if a generator is given."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """Random shifts by up to ``pad`` pixels, and random horizontal flips."""

    pad: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        if self.pad:
            shifts = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
            rows = shifts[0, :, None] + torch.arange(height)
            columns = shifts[1, :, None] + torch.arange(width)
            padded = F.pad(images, (self.pad,) * 4)
            batch = torch.arange(count)[:, None, None]
            images = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            flips = torch.rand(count, generator=generator) < 0.5
            images = torch.where(flips[:, None, None, None], images.flip(3), images)
        return images


class Images(Protocol):
    """Raw images by index, uint8 ``[B, C, H, W]``."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """A subset of uint8 images with labels ``[N]``, normalised with mean and standard deviation per channel."""

    images: Images | Tensor
    labels: Tensor
    members: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = Augmentation()

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        chosen = self.members[indices]
        raw = self.images[chosen]
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        images = (raw.float() / 255 - mean) / std
        if augment is not None:
            images = self.augmentation(images, augment)
        return images.contiguous(), self.labels[chosen]


@dataclass(frozen=True, eq=False)
class InMemorySplit:
    """A split in memory, ready for the network, ``[N, ...]``; it cannot be augmented."""

    inputs: Nested
    targets: Nested

    def __len__(self) -> int:
        return nested.length(self.targets)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        if augment is not None:
            raise ValueError("a split in memory is for evaluation and cannot be augmented")
        part: slice | Tensor = indices
        if len(indices) and bool((indices.diff() == 1).all()):  # consecutive: a view suffices
            part = slice(int(indices[0]), int(indices[-1]) + 1)
        return nested.mapped(lambda x: x[part], self.inputs), nested.mapped(lambda x: x[part], self.targets)


HOLD_BYTES = 1 << 30


def hold(split: Split, device: torch.device, seed: int = 0) -> Split:
    """Load the split into memory on the device if it fits into 1 GiB; otherwise return the split itself.

    Randomness in reading it is drawn once, from ``seed``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = split.fetch(torch.tensor([0]))
        if sum(leaf.numel() for part in first for leaf in nested.leaves(part)) * 4 * len(split) > HOLD_BYTES:
            return split
        parts = [split.fetch(torch.arange(i, min(i + 500, len(split)))) for i in range(0, len(split), 500)]
    inputs, targets = (nested.to(nested.joined(column), device) for column in zip(*parts, strict=True))
    return InMemorySplit(nested.channels_last(inputs), targets)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """A split in another order, or a subset of it."""

    split: Split
    order: Tensor

    def __len__(self) -> int:
        return len(self.order)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        return self.split.fetch(self.order[indices], augment)


def sample(split: Split, most: int, seed: int = 0) -> Split:
    """At most ``most`` random samples of a split, because its first ones may be of a single class."""
    return Shuffled(split, torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:most])


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint splits. The search scores policies on ``search``; ``test`` is read once, at the end."""

    train: Split
    calibration: Split
    search: Split
    test: Split
    classes: int | None
    source: str
    epochs: float = 2.0
    """Default number of epochs of fine-tuning."""
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Notes about the data for the user."""
    labelled: bool = True
    """Whether samples have targets. Without, `amc.task.make_task` takes the original's outputs for targets."""

    def with_fewer_to_train_on(self, most: int, seed: int) -> Splits:
        """A copy that trains on at most ``most`` random samples of its own."""
        if most >= len(self.train):
            return self
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:most]
        limited = {"count": most, "of": len(self.train), "digest": digest(order)}
        return replace(self, train=Shuffled(self.train, order), provenance={**self.provenance, "train": limited})

    def summary(self) -> str:
        """The sizes of all splits, as text."""
        return (
            f"{len(self.train):,} samples to train on, {len(self.calibration):,} for calibration, "
            f"{len(self.search):,} for the search, {len(self.test):,} for the test"
        )


def split_members(count: int, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Random disjoint subsets of ``count`` indices with the given sizes, and a last part with the rest.

    >>> [len(part) for part in split_members(10, [3, 2], seed=0)]
    [3, 2, 5]
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size].sort().values)
        start += size
    return [*parts, order[start:].sort().values]


def digest(members: Tensor) -> str:
    """A short fingerprint of a set of indices."""
    return hashlib.sha256(members.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def record(seed: int, **members: Tensor) -> dict[str, Any]:
    """The seed, and size and fingerprint of every split, for result.json."""
    return {
        "seed": seed,
        **{part: {"count": len(m), "digest": digest(m)} for part, m in members.items()},
    }


def holdout(count: int, config: DataConfig, seed: int, search: int) -> list[Tensor]:
    """Split one set into calibration, search and train; the first two get at most a quarter each."""
    calibration = min(config.calibration, count // 4)
    return split_members(count, [calibration, min(search, config.search, count // 4)], seed)


LEAST_SAMPLES = 10
"""Fewest samples that make four splits of at least two."""


def epochs_for(count: int) -> float:
    """Epochs of distillation on ``count`` samples: 20,000 samples in all, but at least 2 epochs and at most 20.

    >>> epochs_for(500), epochs_for(4000), epochs_for(50000)
    (20.0, 5.0, 2.0)
    """
    return float(min(20, max(2, 20_000 / count)))


def hold_out_all(count: int, config: DataConfig) -> dict[str, Tensor]:
    """Split one set into test, search, calibration and train; the first three get at most a fifth each.

    >>> {part: len(members) for part, members in hold_out_all(100, DataConfig()).items()}
    {'test': 20, 'search': 20, 'calibration': 20, 'train': 40}
    """
    held = min(5000, count // 5)
    sizes = [held, min(config.search, held), min(config.calibration, held)]
    parts = split_members(count, sizes, config.seed)
    return dict(zip(("test", "search", "calibration", "train"), parts, strict=True))


def from_arrays(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    config: DataConfig,
    seed: int,
    defaults: tuple[tuple[float, ...], tuple[float, ...]],
    augmentation: Augmentation,
    source: str,
    epochs: float = 2.0,
) -> Splits:
    """Splits of uint8 images ``[N, C, H, W]`` with labels ``[N]``; search and calibration come from ``train``."""
    mean, std = normalisation(config, defaults, train[0].shape[1])
    calibration, search, rest = holdout(len(train[0]), config, seed, 5000)
    everything = torch.arange(len(test[0]))
    return Splits(
        ImageSplit(*train, rest, mean, std, augmentation),
        ImageSplit(*train, calibration, mean, std),
        ImageSplit(*train, search, mean, std),
        ImageSplit(*test, everything, mean, std),
        int(train[1].max()) + 1,
        source,
        epochs,
        record(seed, train=rest, calibration=calibration, search=search, test=everything),
    )


def normalisation(
    config: DataConfig, defaults: tuple[tuple[float, ...], tuple[float, ...]], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel: the user's, or the defaults. Raises ConfigError."""
    mean, std = config.mean or defaults[0], config.std or defaults[1]
    for word, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise ConfigError(f"{word} has {len(values)} values, but the images have {channels} channels.")
    if min(std) <= 0:
        raise ConfigError(f"--std is {std}, but must be above 0.")
    return mean, std


def unlabelled_splits(parts: Mapping[str, Split], members: Mapping[str, Tensor], seed: int, source: str) -> Splits:
    """The parts of one set without labels (`hold_out_all`), with their indices ``members`` recorded."""
    train, calibration, search, test = (parts[part] for part in ("train", "calibration", "search", "test"))
    epochs = epochs_for(len(members["train"]))
    provenance = record(seed, **members)
    return Splits(train, calibration, search, test, None, source, epochs, provenance, labelled=False)
