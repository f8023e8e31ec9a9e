"""Networks by name, and safe loading of weights.

The built-in networks are common ones for small images:
ResNet-(6n+2) of He et al. 2016 (arXiv:1512.03385, section 4.2) with 1×1-convolution shortcuts (option B),
MobileNetV1 (arXiv:1704.04861) and MobileNetV2 (arXiv:1801.04381) with fewer strides, and VGG-16 with
BatchNorm and one linear layer (arXiv:1409.1556).
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import ConfigError, ModelError, did_you_mean, first_line
from amc.runtime.archives import check_archive, check_plain, load_archive
from amc.runtime.plugins import is_plugin, made_by_plugin

EMBEDDED = Path(__file__).parent / "resnet8-digits.safetensors"


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


class CifarResNet(nn.Module):
    """ResNet for small images: ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``. The depth is 6n + 2."""

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    relu: type[nn.Module] | None = nn.ReLU,
) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return [*layers, relu()] if relu else layers


class MobileNetV1(nn.Module):
    """Thirteen depthwise-separable blocks for small images: the stem and the first two strides are 1."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks = [
            (64, 1),
            (128, 1),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            *[(512, 1)] * 5,
            (1024, 2),
            (1024, 1),
        ]
        layers, inputs = _conv(in_channels, 32, 3), 32
        for outputs, stride in blocks:
            layers += _conv(inputs, inputs, 3, stride, groups=inputs) + _conv(inputs, outputs, 1)
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a shortcut if shapes match."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        layers = _conv(inputs, inner, 1, relu=nn.ReLU6) if expand > 1 else []
        layers += _conv(inner, inner, 3, stride, groups=inner, relu=nn.ReLU6)
        self.conv = nn.Sequential(*layers, *_conv(inner, outputs, 1, relu=None))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals for small images: the stem and the first two strides are 1."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        plan = [
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]
        layers, inputs = _conv(in_channels, 32, 3, relu=nn.ReLU6), 32
        for expand, outputs, repeat, first_stride in plan:
            for index in range(repeat):
                layers.append(InvertedResidual(inputs, outputs, first_stride if index == 0 else 1, expand))
                inputs = outputs
        self.features = nn.Sequential(*layers, *_conv(inputs, 1280, 1, relu=nn.ReLU6))
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class VGG16BN(nn.Module):
    """Thirteen 3×3 convolutions with BatchNorm, five poolings (those that still fit) and one linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for outputs, repeat in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeat):
                layers += _conv(inputs, outputs, 3)
                inputs = outputs
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(CifarResNet, 8),
    "resnet20": partial(CifarResNet, 20),
    "resnet56": partial(CifarResNet, 56),
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
    "vgg16bn": VGG16BN,
}


def load_model(
    name: str,
    weights: str | None,
    channels: int,
    classes: int | None,
    data: str = "",
) -> nn.Module:
    """Load a network by name with its weights, in evaluation mode on the CPU.

    ``channels`` and ``classes`` are those of the data, for built-in networks. Raises ModelError.
    """
    model = build_model(name, weights == "pretrained", channels, classes)
    if weights == "pretrained":
        if not name.startswith(("torchvision:", "timm:")):
            raise ModelError(f"{name} has no 'pretrained' weights: only torchvision: and timm: networks have them.")
    elif weights not in (None, "random"):
        load_weights(model, str(weights))
    elif weights is None and name == "resnet8" and data == "digits":
        load_weights(model, str(EMBEDDED))
    elif weights is None and not is_plugin(name):
        raise ModelError(
            f"{name} needs trained weights: pass --weights FILE, or train it first with "
            f"'amc train --model {name} --data {data or 'DATA'}' (--weights random prunes an untrained network)."
        )
    return model.eval()


def build_model(name: str, pretrained: bool, channels: int, classes: int | None) -> nn.Module:
    """Build a network by name; it is untrained unless ``pretrained`` requests the library's weights."""
    if name in BUILT_IN:
        return BUILT_IN[name](num_classes=classes or 10, in_channels=channels)
    if name.startswith("torchvision:"):
        return _torchvision(name.removeprefix("torchvision:"), pretrained, classes)
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), pretrained, channels, classes)
    if is_plugin(name):
        return _from_plugin(name)
    if name.endswith(".py"):
        raise ConfigError(f"{name} is a Python file: also name what makes the network, as in {name}:make.")
    known = [*BUILT_IN, "torchvision:NAME", "timm:NAME", "file.onnx", "file.py:factory"]
    raise ConfigError(f"unknown model '{name}'.{did_you_mean(name, known)}")


def _from_plugin(name: str) -> nn.Module:
    model = made_by_plugin(name, ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gave a {type(model).__name__}, but must give a torch.nn.Module.")
    return model


def _torchvision(name: str, pretrained: bool, classes: int | None) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise ConfigError(f"torchvision has no model '{name}'.{did_you_mean(name, models.list_models())}")
    kwargs: dict[str, Any] = {} if pretrained or classes is None else {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        kwargs |= {"init_weights": False} if not pretrained else {}
    return _fetching(name, lambda: models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs))


def _timm(name: str, pretrained: bool, channels: int, classes: int | None) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"timm:{name} needs the package timm: pip install 'amc-compress[timm]'.") from None
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'.{did_you_mean(name, timm.list_models())}")
    kwargs: dict[str, Any] = {} if pretrained or classes is None else {"num_classes": classes}
    return _fetching(name, lambda: timm.create_model(name, pretrained=pretrained, in_chans=channels, **kwargs))


def _fetching(name: str, make: Callable[[], Any]) -> nn.Module:
    try:
        model: nn.Module = make()
    except (OSError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(f"{name}: {reason}") from error
    return model


def read_state_dict(path: str, own: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file, or a torch file with only tensors. Raises ModelError.

    ``own``: the file is in a run's folder, where links are not accepted.
    """
    if not os.path.lexists(path) or Path(path).is_dir():
        raise ModelError(f"there is no weights file at {path}.")
    try:
        check_archive(Path(path), own)
        if path.endswith(".safetensors"):
            state: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = load_archive(path)
    except Exception as error:
        system = error.strerror if isinstance(error, OSError) else None
        reason = (system or first_line(error))[:200]
        if isinstance(error, UnpicklingError):
            reason = "it is damaged, or holds more than tensors (code is not run): save model.state_dict()."
        raise ModelError(f"cannot read the weights in {path}: {reason}") from error
    for key in ("state_dict", "model", "model_state_dict", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ModelError(f"{path} does not hold a state dict (names and tensors).")
    try:
        for key, value in state.items():
            check_plain(key, value, Path(path).stat().st_size)
    except ValueError as error:
        raise ModelError(f"cannot use the weights in {path}: {error}.") from None
    return state


def _unwrapped(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the common prefix of names that DataParallel, torch.compile, weight averaging or a trainer adds."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while state and not state.keys() & own.keys():
        prefixes = {key.partition(".")[0] for key in state}
        if len(prefixes) > 1 or any("." not in key for key in state):
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str) -> None:
    """Load a weights file into ``model``. All names, without a common prefix, and all shapes must match."""
    own = model.state_dict()
    state = _unwrapped(read_state_dict(path), own)
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(state) - optional)
    extra = sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"{path} does not fit the network: '{key}' is {list(state[key].shape)} there and "
            f"{list(own[key].shape)} in the network ({len(wrong)} such)."
        )
    if missing or extra:
        what = f"it lacks '{missing[0]}'" if missing else f"it has '{extra[0]}'"
        raise ModelError(f"{path} does not fit the network: {what} ({len(missing)} missing, {len(extra)} too many).")
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # some modules need it
    model.load_state_dict(versioned, strict=False)
