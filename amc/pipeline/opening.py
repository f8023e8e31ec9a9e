"""Open what a configuration names: data, network and device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from amc.config import Config
from amc.errors import ConfigError, first_line
from amc.pipeline.onnx_files import is_onnx, open_onnx, open_onnx_alone
from amc.task import Splits, Task, load_data, load_model, load_objective, make_task, nested


def open_task(config: Config) -> Task:
    """The task of a configuration: data, network and device.

    An image folder is read as greyscale if the network's first convolution has one input channel.
    """
    if is_onnx(config.model.name):
        return _task(config, *open_onnx(config))
    splits = load_data(config.data)
    first = nested.leaves(splits.search.fetch(torch.tensor([0]))[0])[0]
    channels = first.shape[1] if first.ndim > 1 else 1
    model = load_model(config.model.name, config.model.weights, channels, splits.classes, config.data.source)
    first_layer = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    folder = config.data.name.startswith("imagefolder:") or Path(config.data.inputs or "").is_dir()
    if folder and channels == 3 and getattr(first_layer, "in_channels", 3) == 1:
        splits = load_data(config.data, channels=1)
    return _task(config, model, splits)


def _task(config: Config, model: nn.Module, splits: Splits) -> Task:
    name, objective = f"{Path(config.model.name).name} on {splits.source}", load_objective(config.objective)
    return make_task(name, model, splits, pick_device(config.device), objective)


def open_for_inspection(config: Config, with_data: bool) -> Task:
    """The task for ``amc inspect``. An ONNX file needs no data, since it contains the shapes of its inputs."""
    if is_onnx(config.model.name) and not with_data:
        return _task(config, *open_onnx_alone(config))
    return open_task(config)


def pick_device(name: str) -> torch.device:
    """The torch device of this name; ``auto`` is CUDA if it is available. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("it is neither cpu nor cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise ConfigError(f"--device {name} is not available here: {reason}") from None
    return device
