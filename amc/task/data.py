"""Data by name: digits, Fashion-MNIST, CIFAR, image folders, or a user's factory."""

from __future__ import annotations

import errno
import gzip
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.config import DataConfig
from amc.errors import DataError
from amc.runtime.files import opened, read_bytes
from amc.runtime.plugins import made_by
from amc.runtime.registry import Entry, Registry
from amc.task.datasets import splits_of
from amc.task.images import imagefolder
from amc.task.inputs import load_inputs
from amc.task.splits import Augmentation, Splits, from_arrays, split_members


def load_data(config: DataConfig, channels: int | None = None, size: tuple[int, int] | None = None) -> Splits:
    """Load the configured splits. Images of folders are converted to ``channels`` (1 or 3).

    Where the user gives no size, they are scaled to ``size`` (height, width).
    """
    splits = _load(config, channels, size)
    return splits if config.train is None else splits.with_fewer_to_train_on(config.train, config.seed)


def _load(config: DataConfig, channels: int | None, size: tuple[int, int] | None) -> Splits:
    if config.inputs is not None:
        return load_inputs(config, channels, size)
    name, seed = config.name, config.seed
    if name.startswith("imagefolder:"):
        return imagefolder(Path(name.removeprefix("imagefolder:")), config, seed, channels, size)
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
    return splits_of(found[0], found[-1], found[1] if len(found) == 3 else None, config, Path(name).name)


def _digits(config: DataConfig, seed: int) -> Splits:
    """1,797 images of 8×8 in 16 grey levels; 400 fixed ones are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test, train = split_members(len(images), [400], seed=20180210)
    return from_arrays(
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
    return from_arrays(train, test, config, seed, ((0.286,), (0.353,)), Augmentation(pad=2, flip=True), "Fashion-MNIST")


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
        return from_arrays(parts[0], parts[1], config, seed, (mean, std), Augmentation(pad=4, flip=True), kind)

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
