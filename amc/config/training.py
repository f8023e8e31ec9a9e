"""The settings that only ``amc train`` has."""

from __future__ import annotations

from typing import Any, Literal

from amc.config.base import Settings, setting


class TrainConfig(Settings):
    """Training that prepares for pruning, or that is sparse from the start."""

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
    sparse: str | None = setting(
        None,
        "train few weights from the start, which change places by a rule: set, dsr, sparse-momentum, rigl (see amc "
        "list sparse-rules), or path/to/file.py:function [all weights]",
        "--sparse",
    )
    sparse_options: dict[str, Any] = setting(
        {}, "a setting of the rule, as in changes=50; may be given several times", "--sparse-option"
    )
    density: float = setting(0.1, "share of the weights that there are in sparse training", "--density", gt=0, le=1)
    densities: Literal["erdos-renyi-kernel", "uniform"] = setting(
        "erdos-renyi-kernel",
        "how dense layers are in sparse training: erdos-renyi-kernel (small ones denser) or uniform",
        "--densities",
    )
    keep_early: float = setting(
        0.0,
        "share of the training after which its weights are written to NAME.early.safetensors as well, for --recover "
        "rewind-weights; 0: not at all",
        "--keep-early",
        ge=0,
        le=1,
    )
