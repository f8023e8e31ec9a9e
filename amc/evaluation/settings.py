"""The settings of evaluations: all that a score depends on besides the network, the data and the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from amc.errors import ConfigError, did_you_mean
from amc.reconstruction.sequential import Effort

SearchObjective = Literal["logit_mse", "loss"]
"""What a search minimises, per sample. ``logit_mse``: mean squared difference of the logits from the original's, or the
loss if there is not one vector of logits per sample. ``loss``: the task's own loss, with labels."""
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
    """Effort of sequential reconstruction in every evaluation (`amc.reconstruction.sequential`); None turns it off."""
    final: Effort | None = None
    """Effort of sequential reconstruction of refined networks; None: the same as in the search."""
    seed: int = 0
    """Seed of the samples and positions in sequential reconstruction."""


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
    """Objective of the search: `Score.loss` is its mean, and site errors estimate its increase."""
    dtype: Dtype = "float32"
    """Dtype of forward passes in the search. Refined networks are always scored in float32."""
    recalibrate: bool = False
    """Whether BatchNorm statistics are recomputed for every policy (`amc.reconstruction.recalibration`)."""
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
        """The settings as JSON values, for cache keys and for other processes.

        >>> EvaluationSettings.from_dict(EvaluationSettings("loss").to_dict()) == EvaluationSettings("loss")
        True
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationSettings:
        """The inverse of `to_dict`."""
        solving = dict(values["reconstruction"])
        efforts = {name: None if solving[name] is None else Effort(**solving[name]) for name in ("search", "final")}
        return cls(**{**values, "reconstruction": Reconstruction(**{**solving, **efforts})})
