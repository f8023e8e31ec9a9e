"""Channels: how many output channels of coupled layers stay. A setting is that number, the width."""

from __future__ import annotations

from collections.abc import Sequence

from amc.space.sites import Choice, Setting


def legal_widths(channels: int, min_keep: float, step: int | None = None) -> tuple[int, ...]:
    """The widths a site may have, ascending: multiples of ``step`` from ``min_keep`` up, and the full width.

    Without ``step`` it is 8 for 64 channels and more, 4 from 16 on, and 1 below: the vector widths that ONNX
    Runtime and training on a CPU are fast with, where the site is not too narrow for them.

    >>> legal_widths(16, min_keep=0.3)
    (8, 12, 16)
    """
    step = step or (8 if channels >= 64 else 4 if channels >= 16 else 1)
    least = max(1, min_keep * channels - 1e-9)
    widths = {w for w in range(step, channels, step) if w >= least}
    return (*sorted(widths), channels)


def width_of(setting: Setting) -> int:
    """The number of channels that a setting keeps. Raises TypeError for another operator's setting."""
    if not isinstance(setting, int):
        raise TypeError(f"{setting!r} is no number of channels")
    return setting


def widths_of(choice: Choice | Sequence[Setting]) -> tuple[int, ...]:
    """The widths of a policy all of whose sites are channel groups."""
    return tuple(width_of(setting) for setting in choice)
