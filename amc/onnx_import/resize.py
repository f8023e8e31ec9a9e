"""Resize and Upsample: torch's interpolation where it gives the same, else a selection of elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amc.onnx_import.node import Node, Value, as_tensor, numbers


def resize(node: Node, x: Value, *rest: Value) -> Tensor:
    """Resize, with scales or sizes, or Upsample, with scales."""
    given = as_tensor(x)
    scales, sizes = (rest[0] if rest else None, None) if node.op == "Upsample" else (
        rest[1] if len(rest) > 1 else None, rest[2] if len(rest) > 2 else None)  # fmt: skip
    mode, how = node.text("mode", "nearest"), node.text("coordinate_transformation_mode", "half_pixel")
    if node.wholes("axes") is not None:
        raise node.refused("it names axes")
    spatial = given.ndim - 2
    if sizes is not None and sizes.shape != (0,):
        wanted = [int(v) for v in numbers(sizes)[2:]]
    else:
        factors = [float(v) for v in (node.attributes.get("scales") or numbers(scales))]
        if factors[:2] != [1.0, 1.0]:
            raise node.refused("it resizes the batch or the channels")
        wanted = [math.floor(size * factor) for size, factor in zip(given.shape[2:], factors[2:], strict=True)]
    node.check_size(*given.shape[:2], *wanted)
    if mode == "nearest":
        return _nearest(node, given, wanted, how)
    linear, cubic = mode in ("linear", "bilinear", "trilinear"), mode == "cubic"
    halves = ("half_pixel", "pytorch_half_pixel")
    if how not in (*halves, "align_corners") or node.whole("antialias"):
        if not (how == "asymmetric" and wanted == list(given.shape[2:])):
            raise node.refused(f"its coordinates are {how!r} in mode {mode!r}")
        return given
    if cubic and (spatial != 2 or node.number("cubic_coeff_a", -0.75) != -0.75):
        raise node.refused("it is cubic in another way than torch's")
    if not linear and not cubic:
        raise node.refused(f"its mode is {mode!r}")
    word = "bicubic" if cubic else {1: "linear", 2: "bilinear", 3: "trilinear"}[spatial]
    return F.interpolate(given, wanted, mode=word, align_corners=how == "align_corners")


def _nearest(node: Node, x: Tensor, wanted: list[int], how: str) -> Tensor:
    rounds = node.text("nearest_mode", "round_prefer_floor")
    if node.op == "Upsample":
        how, rounds = "asymmetric", "floor"
    sizes = list(zip(x.shape[2:], wanted, strict=True))
    places = [_places(node, old, new, how, rounds) for old, new in sizes]
    for mode, shift in (("nearest", 0.0), ("nearest-exact", 0.5)):  # torch has kernels for these
        own = [np.floor((np.arange(new) + shift) * (old / new)).clip(max=old - 1) for old, new in sizes]
        if all(np.array_equal(a, b) for a, b in zip(own, places, strict=True)):
            return F.interpolate(x, wanted, mode=mode)
    for axis, rows in enumerate(places, 2):
        x = x.index_select(axis, torch.from_numpy(rows).to(x.device))
    return x


def _places(node: Node, old: int, new: int, how: str, rounds: str) -> NDArray[np.int64]:
    """The element that each place of the result takes."""
    at, ratio = np.arange(new), old / new
    positions = {
        "asymmetric": at * ratio,
        "half_pixel": (at + 0.5) * ratio - 0.5,
        "pytorch_half_pixel": (at + 0.5) * ratio - 0.5 if new > 1 else 0.0 * at,
        "align_corners": at * ((old - 1) / max(1, new - 1)),
    }
    rounding: Mapping[str, Any] = {
        "floor": np.floor, "ceil": np.ceil, "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }  # fmt: skip
    if how not in positions or rounds not in rounding:
        raise node.refused(f"its coordinates are {how!r}, rounded {rounds!r}")
    found: NDArray[np.int64] = rounding[rounds](positions[how]).clip(0, old - 1).astype(np.int64)
    return found
