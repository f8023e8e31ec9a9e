"""What is recorded of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

STATISTICS = frozenset(
    ("native_layer_norm", "_fused_rms_norm", "native_group_norm", "sum", "mean", "amax", "amin", "var", "std",
     "linalg_vector_norm", "var_mean", "max", "min", "logsumexp", "prod", "median", "nanmedian", "nansum", "std_mean",
     "aminmax", "any", "all", "argmax", "argmin")
)  # fmt: skip
"""Operators that take statistics; `amc.graph.channels.Statistic` numbers these."""
Vector = Tensor
"""Element ids ``[n]`` along one dimension."""


@dataclass(eq=False)
class WeightedLayer:
    """A layer with weights, as it ran. Its fields are completed during the pass."""

    name: str
    """The module; or the parameter, where a function uses it without a layer."""
    module: str
    output: Vector
    input: Vector | None = None
    positions: int = 0
    """MACs of all calls = weights × positions."""
    bare: bool = False
    """Whether it is a parameter that a function uses."""
    transposed: bool = False
    by_group: bool = False
    """Whether whole groups of a grouped convolution are removed."""
    norm: str | None = None
    """The BatchNorm that reads its output; empty where something else reads it too, None where nothing has yet."""
    refused: str | None = None
    """Why its outputs cannot be removed."""
    is_table: bool = False
    """Whether it holds embeddings ``[n, width]``: a row is looked up, nothing is multiplied."""


@dataclass(frozen=True, eq=False)
class Product:
    """MACs of a product of activations: ``macs`` in all, in proportion to the length of ``ids``."""

    macs: int
    ids: Vector


@dataclass(frozen=True, eq=False)
class Parts:
    """A dimension that became several ``[a, b, …]``: after removing they must still be one block."""

    module: str
    ids: Tensor


@dataclass(frozen=True, eq=False)
class View:
    """A new shape: the number of channels in it may be written down in the module."""

    module: str
    ids: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NormStatistic:
    """A statistic over channels along ``dim``: the ``number``-th of `STATISTICS` in the pass."""

    number: int
    dim: int
    ids: Vector
