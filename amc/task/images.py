"""Image folders: list the files, decode them on first use, and divide them into splits."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from amc.config import DataConfig
from amc.errors import ConfigError, DataError, first_line, is_out_of_memory
from amc.runtime.files import opened
from amc.task.splits import (
    LEAST_SAMPLES,
    Augmentation,
    ImageSplit,
    Splits,
    hold_out_all,
    holdout,
    normalisation,
    record,
    split_members,
    unlabelled_splits,
)

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY = (0.456,), (0.224,)


SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MOST_PIXELS = 1 << 26
"""Most pixels of one image, which takes 192 MiB when decoded."""


class ImageFiles:
    """Image files, decoded by a pool of threads; kept in memory as uint8 if all of them fit into ``keep_bytes``."""

    def __init__(
        self, files: Sequence[str], size: tuple[int, int], keep_bytes: int = 2 << 30, channels: int = 3
    ) -> None:
        """``size`` is height and width; ``channels`` is 3 for RGB, 1 for grey."""
        self._files = list(files)
        self._size, self._mode = size, "L" if channels == 1 else "RGB"
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")
        keeps = len(files) * channels * size[0] * size[1] <= keep_bytes
        self._kept = torch.empty((len(files), channels, *size), dtype=torch.uint8) if keeps else None
        self._present = torch.zeros(len(files), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, indices: Tensor) -> Tensor:
        if self._kept is None:
            return torch.stack(list(self._pool.map(self._decode, indices.tolist())))
        missing = indices[~self._present[indices]]
        if len(missing):
            for index, image in zip(missing.tolist(), self._pool.map(self._decode, missing.tolist()), strict=True):
                self._kept[index] = image
            self._present[missing] = True
        return self._kept[indices]

    def _decode(self, index: int) -> Tensor:
        from PIL import Image, ImageOps

        height, width = self._size
        with _image(self._files[index]) as image:
            decoded = image.convert(self._mode)
        if decoded.size != (width, height):
            decoded = ImageOps.fit(decoded, (width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(decoded)).reshape(height, width, -1).permute(2, 0, 1)


def imagefolder(
    root: Path, config: DataConfig, seed: int, channels: int | None = None, size: tuple[int, int] | None = None
) -> Splits:
    """Splits from ``root/train``, ``root/val`` and ``root/test``, each with CLASS/image, or from ``root/CLASS/image``.

    With only one of ``val`` and ``test``, it is the test split, and the search split is held out from ``train``. Images
    are read in grey if ``channels`` is 1, or if the user's mean and deviation have one value; else in RGB. ``size``
    (height, width) is used where the user gives no size; the default is that of the first image.
    """
    parts = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()} or {"train": root}
    if "train" not in parts:
        raise DataError(f"{root} has {', '.join(sorted(parts))} but no train/ folder.")
    if len(parts) == 2:
        parts = {"train": parts["train"], "test": parts.get("test", parts.get("val", root))}
    listed = {part: _list_images(folder) for part, folder in parts.items()}
    classes = listed["train"][2]
    for part, (_, _, names) in listed.items():
        if names != classes:
            raise DataError(f"{parts[part]} has the classes {names}, but {parts['train']} has {classes}.")
    if config.image_size is not None or size is None:
        size = _image_size(listed["train"][0][0], config.image_size)
    channels = channels or (1 if len(config.mean or config.std or "RGB") == 1 else 3)
    sets = {
        part: (ImageFiles(files, size, channels=channels), torch.tensor(labels))
        for part, (files, labels, _) in listed.items()
    }
    mean, std = normalisation(config, _GREY if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD), channels)
    train, labels = sets["train"]
    count = len(train)
    if len(sets) == 3:
        calibration, rest = split_members(count, [min(config.calibration, count // 4)], seed)
        search_set, test_set = sets["val"], sets["test"]
        search = split_members(len(search_set[0]), [config.search], seed)[0]
        test = torch.arange(len(test_set[0]))
    elif len(sets) == 2:
        calibration, search, rest = holdout(count, config, seed, 5000)
        search_set, test_set = sets["train"], sets["test"]
        test = torch.arange(len(test_set[0]))
    else:
        found = hold_out_all(count, config.replace(seed=seed))
        test, search, calibration, rest = (found[part] for part in ("test", "search", "calibration", "train"))
        search_set = test_set = sets["train"]
    for part, members in (("train", rest), ("calibration", calibration), ("search", search), ("test", test)):
        if len(members) < 2:
            raise DataError(f"{root} has {count} training images: too few for the {part} split.")
    augmentation = Augmentation(pad=max(1, size[0] // 8), flip=True)
    return Splits(
        ImageSplit(train, labels, rest, mean, std, augmentation),
        ImageSplit(train, labels, calibration, mean, std),
        ImageSplit(*search_set, search, mean, std),
        ImageSplit(*test_set, test, mean, std),
        len(classes),
        f"image folder {root.name}",
        2.0,
        record(seed, train=rest, calibration=calibration, search=search, test=test),
    )


def unlabelled_folder(
    root: Path, config: DataConfig, channels: int | None = None, size: tuple[int, int] | None = None
) -> Splits:
    """Splits without labels of all images in a folder and the folders in it, in the order of their paths.

    ``size`` (height, width) is used where the user gives no size; the default is that of the first image. See
    `imagefolder` for ``channels`` and normalisation.
    """
    files = sorted(
        str(Path(folder, name))
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )
    if len(files) < LEAST_SAMPLES:
        raise DataError(f"{root} has {len(files)} images, but the splits need at least {LEAST_SAMPLES}.")
    if config.image_size is not None or size is None:
        size = _image_size(files[0], config.image_size)
    channels = channels or (1 if len(config.mean or config.std or "RGB") == 1 else 3)
    mean, std = normalisation(config, _GREY if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD), channels)
    images, none = ImageFiles(files, size, channels=channels), torch.zeros(len(files), dtype=torch.long)
    members = hold_out_all(len(files), config)
    augmentation = Augmentation(pad=max(1, size[0] // 8), flip=True)
    parts = {part: ImageSplit(images, none, chosen, mean, std) for part, chosen in members.items()}
    return unlabelled_splits(
        {**parts, "train": replace(parts["train"], augmentation=augmentation)}, members, config.seed,
        f"images in {root.name}",
    )  # fmt: skip


def _list_images(folder: Path) -> tuple[list[str], list[int], list[str]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        reason = "it does not exist" if not folder.exists() else str(error).splitlines()[0]
        raise DataError(f"no images in {folder}: {reason}. Expected CLASS/image.jpg in it.") from None
    return [path for path, _ in found.samples], [label for _, label in found.samples], list(found.classes)


@contextlib.contextmanager
def _image(path: str) -> Iterator[Image]:
    """Open an image of a format that PIL decodes itself; for some other formats it would start external programs.

    Raises DataError with the name of the file.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with (
                os.fdopen(opened(Path(path)), "rb") as file,
                Image.open(file, formats=FORMATS) as image,
            ):
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it has {image.width}×{image.height} pixels, more than {MOST_PIXELS:,}")
                yield image
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        if "cannot identify" in reason:
            reason = f"it is none of {', '.join(FORMATS)}"
        raise DataError(f"cannot read the image {path}: {reason.rstrip('.')}.") from None


def _image_size(first: str, asked: int | None) -> tuple[int, int]:
    if asked is not None:
        if asked < 1:
            raise ConfigError(f"--image-size is {asked}, but must be at least 1.")
        return asked, asked
    with _image(first) as image:
        return image.height, image.width
