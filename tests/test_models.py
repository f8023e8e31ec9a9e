"""Networks by name, and weights that are loaded without running any code."""

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import CASES, built
from safetensors.torch import save_file
from torch import nn

from amc.errors import ConfigError, ModelError
from amc.task.models import BUILT_IN, build_model, load_model, load_weights, read_state_dict


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", False, 1, 10)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# Built-in networks


@pytest.mark.parametrize("name", BUILT_IN)
def test_shapes(name: str) -> None:
    """Channels and classes come from the data."""
    model = build_model(name, False, 1, 7).eval()
    size = 16 if name == "vgg16bn" else 8
    with torch.no_grad():
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)
    assert build_model(name, False, 3, None)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_names_are_the_usual_ones() -> None:
    """Checkpoints of ResNet-20 for CIFAR with these names are around: they load as they are."""
    shapes = {key: list(value.shape) for key, value in built("resnet20")[0].state_dict().items()}
    assert shapes["conv1.weight"] == [16, 3, 3, 3]
    assert shapes["bn1.running_mean"] == [16]
    assert shapes["layer1.0.conv1.weight"] == [16, 16, 3, 3]
    assert shapes["layer2.0.downsample.0.weight"] == [32, 16, 1, 1]
    assert shapes["layer2.0.downsample.1.running_var"] == [32]
    assert shapes["layer3.2.bn2.bias"] == [64]
    assert shapes["fc.weight"] == [10, 64]
    assert shapes["fc.bias"] == [10]
    weights = [key for key in shapes if key.endswith("weight") and len(shapes[key]) > 1]
    assert len(weights) == 1 + 18 + 2 + 1
    assert "layer1.0.downsample.0.weight" not in shapes


@pytest.mark.parametrize("name", BUILT_IN)
def test_networks_keep_the_batch_apart(name: str) -> None:
    model, _, _, _ = built(name)
    images = torch.randn(3, *CASES[name][1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-3, atol=1e-4)


# Names


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet21", "unknown model 'resnet21'. Did you mean 'resnet20'"),
        ("zzz", "unknown model 'zzz'. Known: .*mobilenetv1"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'. Did you mean 'resnet18'"),
        ("absent.py:make", "there is no file"),
    ],
)
def test_unknown_names(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_model(name, False, 3, 10)


def test_a_torchvision_network_with_the_classes_of_the_data() -> None:
    model = load_model("torchvision:squeezenet1_1", "random", 3, 7)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def write_plugin(folder: Path) -> Path:
    file = folder / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).train()\n"
        "def word():\n    return 'net'\n"
        "def fails():\n    return 1 / 0\n"
    )
    return file


def test_own_network(tmp_path: Path) -> None:
    file = write_plugin(tmp_path)
    model = load_model(f"{file}:make", None, 1, 3)
    assert not any(module.training for module in model.modules())
    with pytest.raises(ModelError, match=r"gave a str, but must give a torch\.nn\.Module"):
        load_model(f"{file}:word", None, 1, 3)
    with pytest.raises(ModelError, match="fails: ZeroDivisionError"):
        load_model(f"{file}:fails", None, 1, 3)


# Which weights


def test_weights_must_be_named() -> None:
    with pytest.raises(ModelError, match="needs trained weights: pass --weights FILE, or train it first"):
        load_model("resnet20", None, 3, 10, "cifar10")
    with pytest.raises(ModelError, match="resnet20 has no 'pretrained' weights"):
        load_model("resnet20", "pretrained", 3, 10)
    assert not load_model("resnet20", "random", 3, 10).training


# Files


def as_safetensors(state: dict[str, Any], path: Path) -> str:
    save_file(state, f"{path}.safetensors")
    return f"{path}.safetensors"


def as_torch(state: Any, path: Path) -> str:
    torch.save(state, f"{path}.pt")
    return f"{path}.pt"


@pytest.mark.parametrize(
    "save",
    [
        as_safetensors,
        as_torch,
        lambda s, p: as_torch({"state_dict": s, "epoch": 3}, p),
        lambda s, p: as_torch({"model": s}, p),
        lambda s, p: as_torch({f"module.{k}": v for k, v in s.items()}, p),
        lambda s, p: as_safetensors({f"module.{k}": v for k, v in s.items()}, p),
        lambda s, p: as_torch({k: v for k, v in s.items() if "num_batches" not in k}, p),
    ],
)
def test_weights_are_loaded(tmp_path: Path, save: Callable[[dict, Path], str]) -> None:
    source, target = small(), build_model("resnet8", False, 1, 10)
    assert not same_weights(source, target)
    load_weights(target, save(source.state_dict(), tmp_path / "w"))
    assert same_weights(source, target)


def test_load_model_reads_the_file(tmp_path: Path) -> None:
    source = small()
    assert same_weights(load_model("resnet8", as_safetensors(source.state_dict(), tmp_path / "w"), 1, 10), source)


class Trap:
    """Unpickling it makes a file: a weights file must not be able to do that."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2), "b": Trap(trap)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="cannot read the weights") as caught:
        read_state_dict(str(path))
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))  # noqa: S301 (the trap works)
    assert trap.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the weights"):
        read_state_dict(as_torch(small(), tmp_path / "w"))


@pytest.mark.parametrize(
    "content", [3, [1, 2], {"a": 3}, {"a": torch.zeros(1), "b": "x"}, {0: torch.zeros(1)}, {"model": {"a": None}}]
)
def test_what_is_not_a_state_dict(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelError, match="does not hold a state dict"):
        read_state_dict(as_torch(content, tmp_path / "w"))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_garbage_and_damaged_files(tmp_path: Path, suffix: str) -> None:
    """Noise, the empty file, and a good one that was cut or changed: refused in one line, or read."""
    state = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(2)}
    good = Path((as_safetensors if suffix == "safetensors" else as_torch)(state, tmp_path / "good")).read_bytes()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    rng, path = random.Random(0), tmp_path / f"bad.{suffix}"
    contents = [b"", b"\0" * 64, *(rng.randbytes(length) for length in range(1, 80))]
    for raw in (good, old):
        contents += [raw[: rng.randrange(len(raw))] for _ in range(20)]
        for _ in range(40):
            changed = bytearray(raw)
            changed[rng.randrange(min(600, len(raw)))] = rng.randrange(256)
            contents.append(bytes(changed))
    refused = 0
    for content in contents:
        path.write_bytes(content)
        try:
            read_state_dict(str(path))
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 80


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(ModelError, match="there is no weights file"):
            read_state_dict(str(path))


def refusal(tmp_path: Path, change: Callable[[dict], Any]) -> str:
    """What is said of the changed weights; the network must keep its own."""
    state, model = small().state_dict(), build_model("resnet8", False, 1, 10)
    change(state)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(model, as_torch(state, tmp_path / "w"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return str(caught.value)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    told = refusal(tmp_path, lambda s: s.update({"fc.weight": torch.zeros(100, 64)}))
    assert "'fc.weight' is [100, 64] there and [10, 64] in the network (1 such)" in told


def test_weights_that_lack_a_tensor(tmp_path: Path) -> None:
    assert "it lacks 'fc.bias' (1 missing, 0 too many)" in refusal(tmp_path, lambda s: s.pop("fc.bias"))


def test_weights_with_a_tensor_too_many(tmp_path: Path) -> None:
    told = refusal(tmp_path, lambda s: s.update({"extra": torch.zeros(1)}))
    assert "it has 'extra' (0 missing, 1 too many)" in told
