"""The settings that only ``amc train`` has."""

from __future__ import annotations

from typing import Any

from amc.config.base import Settings, setting


class TrainConfig(Settings):
    """Training that prepares for pruning."""

    section = "train"

    sparsify: str | None = setting(
        None,
        "how the training prepares for pruning: bn-l1, group-lasso, hard-concrete … (see amc list preparations), or "
        "path/to/file.py:function; the channels' scores are written beside the weights, for --criterion ranking:FILE "
        "[plain training]",
        "--sparsify",
    )
    sparsify_options: dict[str, Any] = setting(
        {}, "a setting of the preparation, as in strength=0.001; may be given several times", "--sparsify-option"
    )
