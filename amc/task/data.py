"""Data: four disjoint splits, drawn with a seed and recorded.

A split is read by index, so any order of training is a permutation, and training can be resumed at any step.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amc.config import DataConfig
from amc.errors import ConfigError, DataError
from amc.runtime.files import opened, read_bytes
from amc.runtime.plugins import made_by
from amc.runtime.registry import Entry, Registry
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
class HeldSplit:
    """A split in memory, ready for the network, ``[N, ...]``; it cannot be augmented."""

    inputs: Nested
    targets: Nested

    def __len__(self) -> int:
        return nested.length(self.targets)

    def fetch(self, indices: Tensor, augment: torch.Generator | None = None) -> tuple[Nested, Nested]:
        if augment is not None:
            raise ValueError("a held split is for evaluation and is not augmented")
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
        first, _ = split.fetch(torch.tensor([0]))
        if sum(leaf.numel() for leaf in nested.leaves(first)) * 4 * len(split) > HOLD_BYTES:
            return split
        parts = [split.fetch(torch.arange(i, min(i + 500, len(split)))) for i in range(0, len(split), 500)]
    inputs, targets = (nested.to(nested.joined(column), device) for column in zip(*parts, strict=True))
    return HeldSplit(nested.channels_last(inputs), targets)


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

    def told(self) -> str:
        """How many samples every split has, for people."""
        return (
            f"{len(self.train):,} samples to train on, {len(self.calibration):,} for calibration, "
            f"{len(self.search):,} for the search, {len(self.test):,} for the test"
        )


def load_data(config: DataConfig) -> Splits:
    """Load the configured splits."""
    name, seed = config.name, config.seed
    if name.startswith("imagefolder:"):
        from amc.task.images import imagefolder

        return imagefolder(Path(name.removeprefix("imagefolder:")), config, seed)
    entry = DATA.entry(name)
    if entry.own:
        splits: Splits = entry.load()(config, seed)
        return splits
    return _from_plugin(name, entry.load(), config)


def _from_plugin(name: str, factory: Callable[..., Any], config: DataConfig) -> Splits:
    """Splits from a user's factory, which returns (train, test) or (train, search, test), or `Splits`."""
    found = made_by(name, factory, DataError)
    if isinstance(found, Splits):
        return found
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        raise DataError(f"{name} gave a {type(found).__name__}, but must give (train, test) or (train, search, test).")
    from amc.task.datasets import splits_of

    return splits_of(found[0], found[-1], found[1] if len(found) == 3 else None, config, Path(name).name)


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


def _from_arrays(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    config: DataConfig,
    seed: int,
    defaults: tuple[tuple[float, ...], tuple[float, ...]],
    augmentation: Augmentation,
    source: str,
    epochs: float = 2.0,
) -> Splits:
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
    mean, std = config.mean or defaults[0], config.std or defaults[1]
    for word, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise ConfigError(f"{word} has {len(values)} values, but the images have {channels} channels.")
    if min(std) <= 0:
        raise ConfigError(f"--std is {std}, but must be above 0.")
    return mean, std


def _digits(config: DataConfig, seed: int) -> Splits:
    """1,797 images of 8×8 in 16 grey levels; 400 fixed ones are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test, train = split_members(len(images), [400], seed=20180210)
    return _from_arrays(
        (images[train], labels[train]),
        (images[test], labels[test]),
        config,
        seed,
        ((0.305,), (0.376,)),
        Augmentation(pad=1),
        "scikit-learn digits",
        epochs=20.0,
    )


def _fashion(config: DataConfig, seed: int) -> Splits:
    folder = _fashion_folder(config)
    arrays = [
        _read_idx(folder, f"{part}-{kind}")
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    train = arrays[0][:, None], arrays[1].long()
    test = arrays[2][:, None], arrays[3].long()
    if len(train[0]) != len(train[1]) or len(test[0]) != len(test[1]):
        raise DataError(f"{folder}: the numbers of labels and images differ.")
    return _from_arrays(
        train, test, config, seed, ((0.286,), (0.353,)), Augmentation(pad=2, flip=True), "Fashion-MNIST"
    )


def _fashion_folder(config: DataConfig) -> Path:
    if config.download and config.root:
        import torchvision

        for part in (True, False):
            torchvision.datasets.FashionMNIST(config.root, train=part, download=True)
    roots = [Path(config.root)] if config.root else [Path("/usr/share/datasets/fashion-mnist")]
    for root in roots:
        for folder in (root, root / "FashionMNIST" / "raw"):
            if any(folder.glob("train-images-idx3-ubyte*")):
                return folder
    raise DataError(
        f"no Fashion-MNIST files in {roots[0]}: install Debian's package dataset-fashion-mnist, or name their "
        "folder with --data-root, or add --download to fetch them there."
    )


LARGEST_IDX = 1 << 30
"""Most bytes of an unpacked idx file."""


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file. Raises OSError if it has more than `LARGEST_IDX` bytes."""
    with os.fdopen(opened(path), "rb") as file, gzip.GzipFile(fileobj=file) as packed:
        content = packed.read(LARGEST_IDX + 1)
    if len(content) > LARGEST_IDX:
        raise OSError(errno.EFBIG, "it unpacks to more than 1 GiB")
    return content


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped or not: two zero bytes, type 8, rank, sizes (big-endian), data."""
    path = folder / name
    packed = folder / f"{name}.gz"
    try:
        raw = read_bytes(path, LARGEST_IDX) if path.exists() else _unpacked(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {packed}: {error}.") from None
    rank = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    if not rank or len(raw) != 4 + 4 * rank + math.prod(sizes):
        raise DataError(f"{path} is not an idx file of bytes.")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy())


def _cifar(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[DataConfig, int], Splits]:
    def load(config: DataConfig, seed: int) -> Splits:
        import torchvision

        if not config.root:
            raise DataError(f"{kind.lower()} needs --data-root, the folder with its files (--download fetches them).")
        parts = []
        for train in (True, False):
            try:
                found = getattr(torchvision.datasets, kind)(config.root, train=train, download=config.download)
            except (RuntimeError, OSError) as error:
                raise DataError(f"no {kind} in {config.root} ({error}): add --download to fetch it there.") from None
            images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
            parts.append((images, torch.tensor(found.targets)))
        return _from_arrays(parts[0], parts[1], config, seed, (mean, std), Augmentation(pad=4, flip=True), kind)

    return load


_CIFAR10 = _cifar("CIFAR10", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
_CIFAR100 = _cifar("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


DATA: Registry[Callable[..., Any]] = Registry(
    "data",
    "amc.data",
    (
        Entry("digits", "scikit-learn's digits, 8 × 8, 10 classes; embedded", loader=lambda: _digits),
        Entry(
            "fashion-mnist",
            "Fashion-MNIST, 28 × 28, 10 classes (--data-root)",
            "",
            "Xiao et al. 2017",
            lambda: _fashion,
        ),
        Entry("cifar10", "CIFAR-10, 32 × 32 (--data-root)", "", "Krizhevsky 2009", lambda: _CIFAR10),
        Entry("cifar100", "CIFAR-100, 32 × 32 (--data-root)", "", "Krizhevsky 2009", lambda: _CIFAR100),
    ),
    ("imagefolder:PATH",),
)


def data_sources() -> dict[str, Entry[Callable[..., Any]]]:
    """All data by name, those of installed packages (factories without arguments) included."""
    return DATA.entries()
