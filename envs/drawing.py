"""Draw the sites of a policy and their kept sizes, as text or as an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc.space.sites import SiteSettings

WIDTH, ROW, GAP = 320, 12, 4  # pixels
_BARS = 24  # characters
KEPT, REMOVED, UNDECIDED, PAPER = (47, 95, 196), (226, 229, 236), (243, 244, 247), (255, 255, 255)


def text(sites: Sequence[SiteSettings], kept: Sequence[int]) -> str:
    """One line per site: name, bar, and the ``kept`` size; sites after those in ``kept`` are undecided.

    >>> from amc.space.sites import numeric_sites
    >>> print(text(numeric_sites(["conv1", "conv2"], [(2, 4), (4, 8)]), [2]))
    conv1  ############------------  2 of 4
    conv2  ........................  ? of 8
    """
    longest = max(len(site.name) for site in sites)
    lines = []
    for number, site in enumerate(sites):
        bar, size = "." * _BARS, "?"
        if number < len(kept):
            filled = round(_BARS * kept[number] / site.sizes[-1])
            bar, size = "#" * filled + "-" * (_BARS - filled), str(kept[number])
        lines.append(f"{site.name:{longest}}  {bar}  {size} of {site.sizes[-1]}")
    return "\n".join(lines)


def picture(sites: Sequence[SiteSettings], kept: Sequence[int]) -> NDArray[np.uint8]:
    """An image ``[H, W, 3]`` with one bar per site, filled by the ``kept`` share; undecided sites are pale."""
    image = np.full((GAP + len(sites) * (ROW + GAP), WIDTH + 2 * GAP, 3), PAPER, np.uint8)
    for number, site in enumerate(sites):
        top = GAP + number * (ROW + GAP)
        bar = image[top : top + ROW, GAP : GAP + WIDTH]
        bar[:] = UNDECIDED
        if number < len(kept):
            bar[:] = REMOVED
            bar[:, : round(WIDTH * kept[number] / site.sizes[-1])] = KEPT
    return image
