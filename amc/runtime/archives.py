"""Files of torch and of safetensors, looked at before a library loads them: how much they would become in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from amc.runtime.files import MIB, check_file

_SLACK = 16 * MIB
_GROWTH = 2


def check_archive(path: Path, own: bool = False) -> None:
    """Raise OSError or ValueError for what is no regular file, or unpacks to far more than it is.

    torch writes its archives uncompressed. A small one that says that it holds gigabytes is no set of weights.
    """
    check_file(path, own=own)
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):  # the older format, or no archive at all: the loader will say
        return
    if inside > _GROWTH * size + _SLACK:
        raise ValueError(f"it has {size / MIB:.1f} MiB and would unpack to {inside / MIB:,.0f} MiB")


def check_plain(name: str, tensor: Tensor, size: int) -> None:
    """Raise ValueError unless a tensor out of a file of ``size`` bytes is an ordinary one that the file can hold."""
    odd = (
        "sparse" if tensor.layout != torch.strided
        else "on the meta device, which holds no values" if tensor.is_meta
        else "quantised" if tensor.is_quantized
        else "nested" if tensor.is_nested
        else None
    )  # fmt: skip
    if odd:
        raise ValueError(f"'{name}' is {odd}: save it as an ordinary tensor")
    if tensor.numel() * tensor.element_size() > _GROWTH * size + _SLACK:
        raise ValueError(f"'{name}' has the shape {list(tensor.shape)}, of which the file holds a small part only")
