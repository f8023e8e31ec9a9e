"""How many weights each layer of a sparse network has, so that their total is exact.

    uniform              n_l = d · N_l
    erdos-renyi-kernel   n_l = min(N_l, ε · Σ dims_l),    ε such that Σ n_l = d · Σ N_l

d is the density of the whole network, N_l the number of weights of layer l, and dims_l the lengths of its weight's
axes: outputs, inputs and kernel (Evci et al. 2020, RigL, arXiv:1911.11134, section 3; Mocanu et al. 2018,
arXiv:1707.04780, equation 1, for linear layers). Small layers are denser than large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from amc.errors import ConfigError


def counts(kind: str, density: float, shapes: Sequence[Sequence[int]]) -> list[int]:
    """The number of weights of every layer, at least one; together they are the ``density`` of all, rounded.

    >>> counts("uniform", 0.5, [(4, 4), (8, 2)])
    [8, 8]
    >>> counts("erdos-renyi-kernel", 0.5, [(2, 3), (10, 10)])  # the small one is dense
    [6, 47]
    """
    sizes = [math.prod(shape) for shape in shapes]
    total = round(density * sum(sizes))
    if total < len(sizes):
        raise ConfigError(f"--density {density:g} leaves {total} weights for {len(sizes)} layers: give a higher one.")
    shares = sizes if kind == "uniform" else [sum(shape) for shape in shapes]
    return allocate(total, [float(share) for share in shares], sizes, [1] * len(sizes))


def allocate(total: int, shares: Sequence[float], most: Sequence[int], least: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to ``shares``, within bounds, whose sum is ``total`` exactly.

    What a bound cuts off goes to the others, in proportion. Shares of 0 count where nothing else can take more.

    >>> allocate(10, [1.0, 1.0, 8.0], [10, 10, 4], [0, 0, 0])
    [3, 3, 4]
    """
    assert sum(least) <= total <= sum(most)
    low, high = 0.0, 1.0

    def wanted(scale: float) -> list[float]:
        found = []
        for share, top, bottom in zip(shares, most, least, strict=True):
            found.append(min(float(top), max(float(bottom), scale * max(share, 1e-12))))
        return found

    while sum(wanted(high)) < total:
        high *= 2
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(wanted(middle)) < total else (low, middle)
    exact = wanted(high)
    found = [max(bottom, math.floor(value + 1e-9)) for value, bottom in zip(exact, least, strict=True)]
    order = sorted(range(len(found)), key=lambda layer: (found[layer] - exact[layer], layer))  # largest remainder first
    while sum(found) != total:
        step = 1 if sum(found) < total else -1
        for layer in order if step > 0 else order[::-1]:
            bound = most[layer] if step > 0 else least[layer]
            if sum(found) != total and found[layer] != bound:
                found[layer] += step
    return found
