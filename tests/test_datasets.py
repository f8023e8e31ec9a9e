"""Data with faults: found before the search where that is cheap, and always told with the sample."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import amc
from amc.config import DataConfig, from_dict
from amc.errors import AmcError, DataError
from amc.task import data as task_data
from amc.task import images as task_images
from amc.task import load_data, make_task
from amc.task.datasets import splits_of


def tensors(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 3, 8, 8, generator=generator) + classes[:, None, None, None] / 2, classes)


class Mapped(Dataset):
    """The samples of tensors, read one by one."""

    def __init__(self, count: int, change: Any = None, at: int = 90) -> None:
        self.data, self.change, self.at = tensors(count, 1), change, at

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        sample = self.data[index]
        return self.change(*sample) if self.change and index == self.at else sample


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip


def checked(train: Any, test: Any, search: Any = None) -> None:
    make_task("small", network(), splits_of(train, test, search, DataConfig()), torch.device("cpu"))


def with_pixel(value: float, at: int, count: int = 100) -> TensorDataset:
    data = tensors(count)
    data.tensors[0][at, 0, 3, 3] = value
    return data


def with_class(value: int, at: int) -> TensorDataset:
    data = tensors(100)
    data.tensors[1][at] = value
    return data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["train", "search", "test"])
def test_a_pixel_that_is_no_number_is_found_before_the_search(part: str, value: float) -> None:
    data: dict[str, Any] = {"train": tensors(100), "test": tensors(50), "search": tensors(50)}
    data[part] = with_pixel(value, 37)
    with pytest.raises(DataError, match=f"sample 37 of the {part} data holds NaN or infinity"):
        checked(**data)


@pytest.mark.parametrize("value", [4, 9, -1])
@pytest.mark.parametrize("part", ["train", "search", "test"])
def test_a_class_that_the_network_does_not_have_is_found_before_the_search(part: str, value: int) -> None:
    data: dict[str, Any] = {"train": tensors(100), "test": tensors(50), "search": tensors(50)}
    data[part] = with_class(value, 37)
    with pytest.raises(DataError, match=f"has the class {value}, but the network has 4 classes|do not match"):
        checked(**data)


def broken(image: Tensor, target: Tensor) -> Any:
    raise OSError("image file is truncated (7 bytes not processed)")


FAULTS = [
    (broken, "sample 90 of the test data cannot be read: OSError: image file is truncated"),
    (lambda x, y: (x[:, :7], y), "sample 90 of the test data differs in shape from the others"),
    (lambda x, y: (x * float("nan"), y), "sample 90 of the test data holds NaN"),
]


@pytest.mark.parametrize(("change", "told"), FAULTS)
def test_a_fault_late_in_the_test_split_names_the_sample_and_loses_nothing(
    change: Any, told: str, tmp_path: Path
) -> None:
    config = from_dict({"threads": 1, "device": "cpu", "cache": "off",
                        "search": {"evaluations": 2, "searcher": "random"}, "finetune": {"epochs": 0}})  # fmt: skip
    test = Mapped(100, change)
    with pytest.raises(DataError, match=told) as caught:
        amc.compress(network(), tensors(100), test, amc.Budget(flops=0.6), config=config, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert "is finished" in str(caught.value)
    assert amc.load(tmp_path / "run")(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda x, y: {"image": x, "label": y},
            r"is a dict \(image, label\), but must be \(input, target\)",
        ),
        (lambda x, y: (x, y, y), r"is 3 values, but must be \(input, target\)"),
        (lambda x, y: (x, torch.eye(4)[y]), "Pass an amc.Objective"),
        (lambda x, y: (x, torch.stack([y, y])), "Pass an amc.Objective"),
    ],
)
def test_samples_of_another_kind_are_one_line(change: Any, told: str) -> None:
    class All(Mapped):
        def __getitem__(self, index: int) -> Any:
            return change(*self.data[index])

    with pytest.raises(AmcError, match=told) as caught:
        checked(All(100), All(50))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_whole_targets_and_double_images_are_converted(kind: torch.dtype) -> None:
    data = tensors(100)
    odd = TensorDataset(data.tensors[0].double(), data.tensors[1].to(kind))
    splits = splits_of(odd, odd, None, DataConfig())
    make_task("small", network(), splits, torch.device("cpu"))
    inputs, targets = splits.test.fetch(torch.arange(5))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)


def test_minus_infinity_in_a_mask_is_none_of_our_business() -> None:
    class Masked(Mapped):
        def __getitem__(self, index: int) -> Any:
            image, target = self.data[index]
            return {"image": image, "mask": torch.tensor([0.0, -float("inf")])}, target

    splits = splits_of(Masked(100), Masked(50), None, DataConfig())
    assert set(splits.test.fetch(torch.arange(3))[0]) == {"image", "mask"}


def test_samplers() -> None:
    data = tensors(100)
    weighted = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 100, 100))
    assert "WeightedRandomSampler is not used" in splits_of(weighted, data, None, DataConfig()).notes[0]
    some = DataLoader(data, sampler=SubsetRandomSampler(range(40)))
    splits = splits_of(some, data, None, DataConfig())
    assert sum(len(getattr(splits, part)) for part in ("train", "calibration", "search")) == 40
    assert not splits.notes
    assert not splits_of(DataLoader(data, shuffle=True), data, None, DataConfig()).notes


# Image folders


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(sprung) (w) file closefile\n%%EOF\n")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def replaced_by_fifo(path: Path) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (postscript, "it is none of JPEG"),
        (truncated, "cannot read the image"),
        (replaced_by_fifo, "it is no regular file"),
        (lambda p: p.write_bytes(b""), "it is none of"),
        (lambda p: picture(p, (100, 100)), "it has 100×100 pixels"),
    ],
)
def test_an_image_that_is_none_is_named(
    damage: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_images, "MOST_PIXELS", 5000)
    monkeypatch.setattr("subprocess.Popen", None)
    for part in ("train", "test"):
        for name in ("a", "b"):
            for number in range(10):
                picture(tmp_path / part / name / f"{number}.png")
    damage(tmp_path / "test" / "b" / "3.png")
    splits = load_data(DataConfig(name=f"imagefolder:{tmp_path}"))
    with pytest.raises(DataError, match=told) as caught:
        splits.test.fetch(torch.arange(20))
    assert "b/3.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_packed_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_data, "LARGEST_IDX", 1 << 20)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(DataError, match="it unpacks to more than 1 GiB"):
        load_data(DataConfig(name="fashion-mnist", root=str(tmp_path)))
