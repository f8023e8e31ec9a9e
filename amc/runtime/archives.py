"""Files of torch and of safetensors, looked at before a library loads them: how much they would become in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

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


def load_archive(path: Path | str) -> Any:
    """What a file of torch holds, loaded without pickled code. Raises whatever torch raises for a damaged file.

    torch checks the sparse tensors of a file at the end, and those of a file that it could not read to its end in the
    next call, where their memory is no longer theirs: they are forgotten here.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        getattr(torch._utils, "_sparse_tensors_to_validate", []).clear()


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
