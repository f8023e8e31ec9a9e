"""What an evaluation depends on besides the network, the data and the policy: one value, given once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from amc.errors import ConfigError, did_you_mean
from amc.reconstruction.sequential import Effort

SearchObjective = Literal["logit_mse", "loss"]
"""What a search minimises, per sample. ``logit_mse``: mean squared difference of the logits from the original's; the
loss where there is not one vector of logits a sample. ``loss``: the task's own loss, with the labels."""
OBJECTIVES: tuple[SearchObjective, ...] = ("logit_mse", "loss")
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Reconstruction:
    """How the layers that read pruned channels are re-solved by least squares.

    >>> Reconstruction(final=Effort(samples=4096, rows=24576, rounds=4)).search is None
    True
    """

    solve: bool = True
    """Whether layers are re-solved at all, on the original's inputs (`amc.reconstruction.least_squares`)."""
    search: Effort | None = None
    """Of sequential reconstruction in every evaluation; None: there is none (`amc.reconstruction.sequential`)."""
    final: Effort | None = None
    """Of sequential reconstruction of the networks that are refined; None: they are no better than in the search."""
    seed: int = 0
    """Draws the samples and the positions of sequential reconstruction."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How policies are scored.

    >>> EvaluationSettings("loss").dtype
    'float32'
    >>> EvaluationSettings("los")
    Traceback (most recent call last):
    ...
    amc.errors.ConfigError: the objective of the search is 'los'. Did you mean 'loss'?
    """

    objective: SearchObjective
    """Of the search: what `Score.loss` is the mean of, and what site errors estimate the rise of."""
    dtype: Dtype = "float32"
    """Of the search's forward passes. Refined networks are always scored in float32."""
    recalibrate: bool = False
    """Whether BatchNorm statistics are computed anew for every policy (`amc.reconstruction.recalibration`)."""
    reconstruction: Reconstruction = Reconstruction()

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            suggestion = did_you_mean(self.objective, OBJECTIVES)
            raise ConfigError(f"the objective of the search is {self.objective!r}.{suggestion}")

    @property
    def half(self) -> bool:
        """Whether the search's forward passes are computed in bfloat16."""
        return self.dtype == "bfloat16"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a cache's identity and for other processes.

        >>> EvaluationSettings.from_dict(EvaluationSettings("loss").to_dict()) == EvaluationSettings("loss")
        True
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationSettings:
        """The settings in plain values."""
        solving = dict(values["reconstruction"])
        efforts = {name: None if solving[name] is None else Effort(**solving[name]) for name in ("search", "final")}
        return cls(**{**values, "reconstruction": Reconstruction(**{**solving, **efforts})})
