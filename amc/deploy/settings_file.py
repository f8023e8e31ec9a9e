"""Store the settings of a policy in an exported ONNX file, where they are stored otherwise than in torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn

from amc.deploy.export import read_onnx
from amc.operators.compose import needs_writing, write_settings
from amc.operators.operator import PolicySetting
from amc.operators.registry import OPERATORS, Operators
from amc.runtime.files import replacing


def store_settings(
    path: Path,
    model: nn.Module,
    settings: Mapping[str, PolicySetting],
    removed: Collection[str] = (),
    operators: Operators = OPERATORS,
) -> None:
    """Change the file of ``model``, which has these settings. Layers ``removed`` are not in it. Raises ExportError."""
    if not needs_writing(settings, operators):
        return
    proto = read_onnx(path)
    write_settings(proto, model, settings, removed, operators)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
