"""Data: four disjoint splits, drawn with a seed; and every broken file is told in one line."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, default_collate

from amc.config import Config, DataConfig
from amc.errors import ConfigError, DataError
from amc.pipeline.opening import open_task
from amc.task.data import load_data
from amc.task.datasets import DatasetSplit, splits_of
from amc.task.images import ImageFiles
from amc.task.splits import Augmentation, ImageSplit, InMemorySplit, Split, Splits, digest, hold, split_members

PARTS = ("train", "calibration", "search", "test")


def digits(seed: int = 0, **options: object) -> Splits:
    return load_data(DataConfig(**options, seed=seed))


# Splitting


@given(st.integers(0, 300), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_sorted_and_complete(count: int, sizes: list[int], seed: int) -> None:
    parts = split_members(count, sizes, seed)
    assert len(parts) == len(sizes) + 1
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    if sum(sizes) <= count:
        assert [len(part) for part in parts] == [*sizes, count - sum(sizes)]


def test_splits_are_drawn_with_the_seed() -> None:
    drawn = [tuple(map(digest, split_members(100, [30], seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_digest_sees_order_and_members() -> None:
    assert len({digest(torch.tensor(m)) for m in ([1, 2], [2, 1], [1, 3], [1], [])}) == 5


# Digits


def test_digits() -> None:
    splits = digits()
    sizes = {part: len(getattr(splits, part)) for part in PARTS}
    assert sizes == {"train": 699, "calibration": 349, "search": 349, "test": 400}
    assert (splits.classes, splits.epochs, splits.source) == (10, 20.0, "scikit-learn digits")
    images, labels = splits.search.fetch(torch.tensor([3, 5, 3]))
    assert (images.shape, images.dtype, labels.dtype) == ((3, 1, 8, 8), torch.float32, torch.int64)
    assert torch.equal(images[0], images[2])


def test_digits_are_disjoint() -> None:
    splits = digits()
    members = [getattr(splits, part).members for part in ("train", "calibration", "search")]
    assert sorted(torch.cat(members).tolist()) == list(range(1397))
    pixels = {part: getattr(splits, part).images for part in PARTS}
    assert pixels["train"] is pixels["calibration"] is pixels["search"]
    assert len(pixels["train"]) + len(pixels["test"]) == 1797


def test_the_test_split_does_not_depend_on_the_seed() -> None:
    records = [digits(seed).provenance for seed in (0, 0, 1)]
    assert records[0] == records[1]
    assert records[0]["test"] == records[2]["test"]
    assert all(records[0][part]["digest"] != records[2][part]["digest"] for part in PARTS[:3])
    first, second = (digits(seed).test.fetch(torch.arange(400)) for seed in (0, 1))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_record_is_that_of_the_splits() -> None:
    splits = digits(seed=7)
    expected = {p: {"count": len(getattr(splits, p)), "digest": digest(getattr(splits, p).members)} for p in PARTS}
    assert splits.provenance == {"seed": 7, **expected}


def test_fewer_images_to_train_on() -> None:
    """They are drawn from those that would be trained on; the other splits stay as they are."""
    whole, fewer = load_data(DataConfig()), load_data(DataConfig(train=100))
    assert (len(fewer.train), fewer.provenance["train"]["count"]) == (100, 100)
    assert fewer.provenance["train"]["of"] == len(whole.train)
    everything = torch.arange(len(whole.train))
    images = {image.numpy().tobytes() for image in whole.train.fetch(everything)[0]}
    drawn = [image.numpy().tobytes() for image in fewer.train.fetch(torch.arange(100))[0]]
    assert set(drawn) <= images
    assert len(set(drawn)) > 95  # two of the images are equal in places
    for name in ("calibration", "search", "test"):
        assert fewer.provenance[name] == whole.provenance[name]
    assert load_data(DataConfig(train=10**6)).summary() == whole.summary()


def test_digits_are_about_normalised() -> None:
    images = digits().train.fetch(torch.arange(699))[0]
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def test_own_normalisation_and_split_sizes() -> None:
    splits = digits(mean=(0.0,), std=(1.0,), calibration=10, search=20)
    images = splits.train.fetch(torch.arange(50))[0]
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert (len(splits.calibration), len(splits.search), len(splits.train)) == (10, 20, 1367)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mean": (0.1, 0.2, 0.3)}, "--mean has 3 values, but the images have 1 channels"),
        ({"std": (0.1, 0.2)}, "--std has 2 values"),
        ({"std": (0.0,)}, "must be above 0"),
        ({"std": (-1.0,)}, "must be above 0"),
        ({"name": "digit"}, "unknown data 'digit'. Did you mean 'digits'"),
        ({"name": "cifar"}, "Did you mean 'cifar10'"),
    ],
)
def test_options_that_do_not_fit(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_data(DataConfig(**options))


# Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
def test_augmentation_is_decided_by_its_generator(pad: int, flip: bool, seed: int) -> None:
    images = torch.randn(5, 3, 6, 7, generator=generator())
    augment, before = Augmentation(pad, flip), images.clone()
    first, second = (augment(images, generator(seed)) for _ in range(2))
    assert first.shape == images.shape
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    if pad == 0 and not flip:
        assert torch.equal(first, images)


def test_flips_are_mirror_images_and_about_half() -> None:
    images = torch.randn(400, 1, 3, 4, generator=generator())
    flipped = Augmentation(flip=True)(images, generator())
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 160 < int(mirrored.sum()) < 240


def test_shifts_move_the_image_by_up_to_pad_pixels() -> None:
    """A single bright pixel lands on each of the 25 places around it, and nothing comes from elsewhere."""
    images = torch.zeros(1000, 2, 7, 7)
    images[:, :, 3, 3] = 1
    shifted = Augmentation(pad=2)(images, generator())
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    places = {tuple(place) for place in shifted[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in range(1, 6) for column in range(1, 6)}
    assert torch.equal(shifted.sum((1, 2, 3)), torch.full((1000,), 2.0))


def test_only_training_is_augmented_and_only_on_request() -> None:
    splits = digits()
    indices = torch.arange(50)
    plain = splits.train.fetch(indices)[0]
    assert torch.equal(plain, splits.train.fetch(indices)[0])
    assert not torch.equal(plain, splits.train.fetch(indices, generator())[0])
    for part in PARTS[1:]:
        split = getattr(splits, part)
        assert torch.equal(split.fetch(indices)[0], split.fetch(indices, generator())[0])


def test_normalisation_is_per_channel() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 2, 1, 1)
    split = ImageSplit(images, torch.tensor([4, 5]), torch.tensor([1, 0]), (0.5, 0.25), (0.5, 2.0))
    fetched, labels = split.fetch(torch.tensor([0, 1]))
    assert fetched.flatten(1).tolist() == [[1.0, 0.375], [-1.0, -0.125]]
    assert labels.tolist() == [5, 4]


def test_a_map_style_dataset_is_read_by_index() -> None:
    dataset = [(torch.full((1, 2, 2), float(i)), i) for i in range(10)]
    split = DatasetSplit(dataset, default_collate, torch.tensor([7, 3, 1]))
    inputs, targets = split.fetch(torch.tensor([2, 0]))
    assert len(split) == 3
    assert inputs[:, 0, 0, 0].tolist() == [1.0, 7.0]
    assert targets.tolist() == [1, 7]


# Folders of images


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 8) -> Path:
    for label, name in enumerate(classes):
        for index in range(each):
            picture(root / name / f"{index}.png", label * each + index)
    return root


def images_in(root: Path, seed: int = 0, **options: object) -> Splits:
    return load_data(DataConfig(name=f"imagefolder:{root}", **options, seed=seed))


def test_train_val_and_test_folders(tmp_path: Path) -> None:
    for part, each in (("train", 8), ("val", 3), ("test", 2)):
        folder(tmp_path / part, each=each)
    splits = images_in(tmp_path)
    assert {part: len(getattr(splits, part)) for part in PARTS} == {
        "train": 12, "calibration": 4, "search": 6, "test": 4,
    }  # fmt: skip
    assert splits.train.images is splits.calibration.images
    assert len({id(getattr(splits, part).images) for part in PARTS}) == 3
    assert sorted(torch.cat([splits.train.members, splits.calibration.members]).tolist()) == list(range(16))


@pytest.mark.parametrize("second", ["val", "test"])
def test_two_folders(tmp_path: Path, second: str) -> None:
    """The search split is held out from train/; the other folder is the test split."""
    folder(tmp_path / "train")
    folder(tmp_path / second, each=3)
    splits = images_in(tmp_path)
    assert {part: len(getattr(splits, part)) for part in PARTS} == {
        "train": 8, "calibration": 4, "search": 4, "test": 6,
    }  # fmt: skip
    assert splits.search.images is splits.train.images is not splits.test.images
    members = [getattr(splits, part).members for part in PARTS[:3]]
    assert sorted(torch.cat(members).tolist()) == list(range(16))


def test_grey_images(tmp_path: Path) -> None:
    """As the network's first convolution takes them, or as the user's one mean says."""
    root = folder(tmp_path / "photos", each=20)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))\n"
        "def ready():\n"
        "    import torch\n"
        "    net = make()\n"
        "    net(torch.zeros(1, 1, 8, 8))\n"
        "    return net\n"
    )
    config = Config().replace(
        model={"name": f"{tmp_path}/net.py:ready"}, data={"name": f"imagefolder:{root}", "image_size": 8}
    )
    assert open_task(config).example.shape[1:] == (1, 8, 8)
    grey = load_data(DataConfig(name=f"imagefolder:{root}", mean=(0.0,), std=(1.0,)))
    colour = load_data(DataConfig(name=f"imagefolder:{root}", mean=(0.0,) * 3, std=(1.0,) * 3))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    one, three = (splits.train.fetch(torch.arange(4))[0] for splits in (grey, colour))
    assert torch.allclose(one, (weights * three).sum(1, keepdim=True), atol=1 / 255)


def test_a_folder_per_class(tmp_path: Path) -> None:
    splits = images_in(folder(tmp_path, ("a", "b", "c"), each=10))
    members = [getattr(splits, part).members for part in PARTS]
    assert [len(m) for m in members] == [12, 6, 6, 6]
    assert sorted(torch.cat(members).tolist()) == list(range(30))
    assert splits.classes == 3
    assert images_in(tmp_path, seed=0).provenance == splits.provenance
    assert images_in(tmp_path, seed=1).provenance != splits.provenance


def test_pixels_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    splits = images_in(folder(tmp_path), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, labels = splits.train.fetch(torch.arange(len(splits.train)))
    for image, label, member in zip(images, labels.tolist(), splits.train.members.tolist(), strict=True):
        with Image.open(tmp_path / ("cat", "dog")[member // 8] / f"{member % 8}.png") as file:
            expected = np.asarray(file)
        assert label == member // 8
        assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_images_are_scaled_to_one_size(tmp_path: Path) -> None:
    folder(tmp_path)
    picture(tmp_path / "cat" / "5.png", size=(20, 10), mode="L")
    picture(tmp_path / "dog" / "5.png", size=(3, 30), mode="RGBA")
    everything = torch.arange(4)
    for options, side in (({}, 8), ({"image_size": 5}, 5)):
        splits = images_in(tmp_path, **options)
        shapes = {getattr(splits, part).fetch(everything[: len(getattr(splits, part))])[0].shape[1:] for part in PARTS}
        assert shapes == {(3, side, side)}
        assert ImageFiles([str(tmp_path / f"{c}/5.png") for c in ("cat", "dog")], (side, side))[
            torch.tensor([0, 1])
        ].shape == (2, 3, side, side)


def test_decoded_images_are_kept_while_they_fit(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    files = [str(tmp_path / "a.png")]
    kept, read_again = ImageFiles(files, (8, 8)), ImageFiles(files, (8, 8), keep_bytes=8 * 8 * 3 - 1)
    zero = torch.tensor([0])
    first = kept[zero].clone()
    assert torch.equal(first, read_again[zero])
    picture(tmp_path / "a.png", 2)
    assert torch.equal(kept[zero], first)
    assert not torch.equal(read_again[zero], first)


def read_everything(root: Path) -> None:
    splits = images_in(root)
    for part in PARTS:
        split = getattr(splits, part)
        split.fetch(torch.arange(len(split)))


def broken_first(root: Path) -> None:
    (folder(root) / "cat" / "0.png").write_bytes(b"not a picture")


def broken_later(root: Path) -> None:
    path = folder(root) / "dog" / "7.png"
    path.write_bytes(path.read_bytes()[:-60])


def bomb(root: Path) -> None:
    """A bitmap whose header claims 10^9 pixels."""
    picture(root / "cat" / "0.bmp")
    raw = bytearray((root / "cat" / "0.bmp").read_bytes())
    raw[18:26] = (31623).to_bytes(4, "little") * 2
    (root / "cat" / "0.bmp").write_bytes(raw)


def no_class(root: Path) -> None:
    root.mkdir()


def empty_class(root: Path) -> None:
    folder(root)
    (root / "bird").mkdir()


def other_classes(root: Path) -> None:
    folder(root / "train")
    folder(root / "val", ("cat", "horse"))


def no_train(root: Path) -> None:
    folder(root / "val")


def too_few(root: Path) -> None:
    folder(root, each=2)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (broken_first, "cannot read the image"),
        (broken_later, "cannot read the image"),
        (bomb, "cannot read the image"),
        (no_class, "no images in"),
        (empty_class, "no images in .* bird"),
        (other_classes, "has the classes"),
        (no_train, "has val but no train/ folder"),
        (too_few, "4 training images: too few"),
        (lambda root: None, "it does not exist"),
        (lambda root: root.write_text("a file"), "no images in"),
    ],
)
def test_broken_folders(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    root = tmp_path / "images"
    make(root)
    with pytest.raises(DataError, match=told) as caught:
        read_everything(root)
    assert "\n" not in str(caught.value)


def test_image_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size is 0, but must be at least 1"):
        images_in(folder(tmp_path), image_size=0)


# Idx files


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(np.random.default_rng(0).integers(0, 256, (40, 6, 5))),
    "train-labels-idx1-ubyte": idx(np.arange(40) % 10),
    "t10k-images-idx3-ubyte": idx(np.random.default_rng(1).integers(0, 256, (10, 6, 5))),
    "t10k-labels-idx1-ubyte": idx(np.arange(10)),
}


def fashion(root: Path, packed: bool = False, **changes: bytes) -> Splits:
    root.mkdir(parents=True, exist_ok=True)
    for name, raw in FILES.items():
        (root / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)
    for name, raw in changes.items():
        (root / name).write_bytes(raw)
    return load_data(DataConfig(name="fashion-mnist", root=str(root)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", [".", "FashionMNIST/raw"])
def test_idx_files(tmp_path: Path, packed: bool, inner: str) -> None:
    fashion(tmp_path / inner, packed)
    splits = load_data(DataConfig(name="fashion-mnist", root=str(tmp_path), mean=(0.0,), std=(1.0,)))
    images, labels = splits.test.fetch(torch.arange(10))
    expected = np.frombuffer(FILES["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(10, 1, 6, 5)
    assert np.array_equal((images * 255).round().byte().numpy(), expected)
    assert labels.tolist() == list(range(10))
    assert [len(getattr(splits, part)) for part in PARTS] == [20, 10, 10, 10]


GOOD = FILES["train-images-idx3-ubyte"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\x08",
        GOOD[:-1],
        GOOD[:9],
        GOOD + b"\0",
        b"\0\0\x0d" + GOOD[3:],
        b"\x01" + GOOD[1:],
        b"\0\0\x08\x04" + GOOD[4:],
        b"\0\0\x08\x03" + b"\xff" * 12,
    ],
)
def test_broken_idx_files(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not an idx file"):
        fashion(tmp_path, **{"train-images-idx3-ubyte": raw})


@pytest.mark.parametrize(
    "damage", [lambda z: z[:-20], lambda z: z[:10] + b"\xff" * 20 + z[30:], lambda z: b"", lambda z: b"x" * 50]
)
def test_broken_gzip_files(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    name = "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte(\.gz)?"):
        fashion(tmp_path, packed=True, **{name: damage(gzip.compress(GOOD))})


def test_labels_that_do_not_match_the_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="numbers of labels and images differ"):
        fashion(tmp_path, **{"train-labels-idx1-ubyte": idx(np.arange(39))})


def test_missing_idx_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Fashion-MNIST files"):
        load_data(DataConfig(name="fashion-mnist", root=str(tmp_path)))
    fashion(tmp_path / "part")
    (tmp_path / "part" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"cannot read .*t10k-labels"):
        load_data(DataConfig(name="fashion-mnist", root=str(tmp_path / "part")))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} needs --data-root"):
        load_data(DataConfig(name=name))
    with pytest.raises(DataError, match="--download"):
        load_data(DataConfig(name=name, root=str(tmp_path)))


# Splits held in memory


@pytest.mark.parametrize("indices", [[0, 1, 2], [5, 6], [3], [4, 2], [0, 2, 1, 3], [1, 1, 3], [0, 3, 9], []])
def test_a_held_split_reads_what_the_split_reads(indices: list[int]) -> None:
    split = digits(search=10).search
    held, asked = hold(split, torch.device("cpu")), torch.tensor(indices, dtype=torch.long)
    assert isinstance(held, InMemorySplit)
    assert len(held) == 10
    for found, expected in zip(held.fetch(asked), split.fetch(asked), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="cannot be augmented"):
        held.fetch(asked, generator())


def test_what_does_not_fit_into_memory_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    split = digits(search=10).search
    monkeypatch.setattr("amc.task.splits.HOLD_BYTES", 10 * 64 * 4 - 1)
    assert hold(split, torch.device("cpu")) is split


def test_holding_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    hold(Noisy(40).as_split(), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


# The user's own


class Noisy:
    """A dataset that augments by itself: every reading is different."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 4, 4), float(index)) + torch.rand(1, 4, 4) / 2, index % 3

    def as_split(self) -> DatasetSplit:
        return DatasetSplit(self, default_collate, torch.arange(self.count))


def labels_of(split: Split) -> list[int]:
    """Which samples of a Noisy dataset a split holds."""
    images, targets = split.fetch(torch.arange(len(split)))
    numbers = images[:, 0, 0, 0].floor().long()
    assert torch.equal(numbers % 3, targets)
    return numbers.tolist()


@pytest.mark.parametrize("loader", [False, True])
def test_own_train_and_test(loader: bool) -> None:
    data = [DataLoader(Noisy(n), batch_size=7, shuffle=True) if loader else Noisy(n) for n in (40, 10)]
    splits = splits_of(data[0], data[1], None, DataConfig(seed=1))
    read = {part: labels_of(getattr(splits, part)) for part in PARTS}
    assert [len(read[part]) for part in PARTS] == [20, 10, 10, 10]
    assert sorted(read["train"] + read["calibration"] + read["search"]) == list(range(40))
    assert read["test"] == list(range(10))
    again = splits_of(data[0], data[1], None, DataConfig(seed=1))
    assert again.provenance == splits.provenance
    for part in ("calibration", "search"):  # read once, whatever the dataset does at random
        indices = torch.arange(5)
        first = getattr(splits, part).fetch(indices)[0]
        assert torch.equal(first, getattr(splits, part).fetch(indices)[0])
        assert torch.equal(first, getattr(again, part).fetch(indices)[0])
    assert not torch.equal(splits.train.fetch(indices)[0], splits.train.fetch(indices)[0])


def test_own_train_search_and_test() -> None:
    splits = splits_of(Noisy(40), Noisy(10), Noisy(30), DataConfig(search=12, calibration=8))
    sizes = [len(getattr(splits, part)) for part in PARTS]
    assert sizes == [32, 8, 12, 10]
    assert max(labels_of(splits.search)) >= 12
    assert sorted(labels_of(splits.train) + labels_of(splits.calibration)) == list(range(40))


class Failing(Noisy):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        raise KeyError("first line\nsecond line")


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(())


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (Noisy(3), "the calibration split has 0 samples, but needs at least 2"),
        (Failing(40), "sample [0-9]+ of the train data cannot be read: KeyError"),
        (Stream(), "train is a Stream, but must be a map-style dataset"),
        (DataLoader(Stream()), "train is a DataLoader, but must be a map-style dataset"),
        (5, "train is a int, but must be"),
        ([(torch.zeros(1), "word")] * 40, "must be"),
        ([(torch.zeros(i), 1) for i in range(40)], "must be"),
    ],
)
def test_own_data_that_cannot_be_read(train: Any, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        splits_of(train, Noisy(10), None, DataConfig())
    assert "\n" not in str(caught.value)


def test_own_data_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nfrom amc.config import DataConfig\nfrom amc.task.data import load_data\n"
        "data = [(torch.zeros(1, 2, 2), 1)] * 40\n"
        "def good():\n    return load_data(DataConfig(seed=3))\n"
        "def pair():\n    return data, data[:10]\n"
        "def bad():\n    return 5\n"
        "def fails():\n    return 1 / 0\n"
    )
    assert load_data(DataConfig(name=f"{file}:good")).provenance["seed"] == 3
    pair = load_data(DataConfig(name=f"{file}:pair"))
    assert (len(pair.train), len(pair.test), pair.source) == (20, 10, "own.py:pair")
    with pytest.raises(DataError, match="gave a int, but must give"):
        load_data(DataConfig(name=f"{file}:bad"))
    with pytest.raises(DataError, match="fails: ZeroDivisionError"):
        load_data(DataConfig(name=f"{file}:fails"))
