"""What the records of a journal hold, so that a damaged one is told before any work and not after all of it.

A record of a kind that is not known here, and a value that is not, may be of a newer version: they pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e10)]
Milliseconds = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e12)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Text = Annotated[str, Field(max_length=10_000)]
Choice = Annotated[list[Any], Field(min_length=1, max_length=1_000_000)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Run(_Record):
    fingerprint: Text
    config: Text
    splits: dict[str, Any]


class _Stage(_Record):
    name: Text
    seconds: Seconds


class _Score(_Record):
    choice: Choice
    loss: Finite
    metric: Finite


class _Trial(_Score):
    share: Share | None = None


class _Evaluation(_Record):
    choice: Choice
    loss: Finite | None = None
    metric: Finite | None = None
    reward: Finite | None = None
    costs: dict[str, Finite]
    seconds: Seconds
    share: Share = 1.0
    lost: bool = False
    error: Text | None = None
    time: Seconds | None = None

    @model_validator(mode="after")
    def _complete(self) -> _Evaluation:
        if self.error is None and None in (self.loss, self.metric, self.reward):
            raise ValueError("it needs a loss, a metric and a reward, or an error")
        return self


class _Training(_Record):
    done: Share
    loss: Finite


class _Latency(_Record):
    choice: Choice
    ms: Milliseconds
    predicted: Finite
    quiet: Annotated[float, Field(ge=0)]


class _Correction(_Record):
    factor: Annotated[float, Field(gt=0)]
    tighter: Annotated[float, Field(gt=0)] = 1.0
    why: Text
    after: int | None = None


class _Scale(_Record):
    ms: Milliseconds


class _DeviceLatency(_Record):
    key: Text
    ms: Milliseconds


class _Original(_Record):
    sha256: Annotated[str, Field(pattern=r"[0-9a-f]{64}")]


class _Int8(_Record):
    of: Text
    found: dict[str, Any]


class _Test(_Record):
    found: dict[str, Finite]


class _Number(_Record):
    found: Finite


class _Recalibrate(_Record):
    found: bool


class _Word(_Record):
    found: Text


class _Batch(_Record):
    runs: list[dict[str, Any]]
    time: Seconds | None = None


class _Attempt(_Record):
    name: Text
    attempt: Annotated[int, Field(ge=0, le=1_000_000)]
    error: Text | None = None
    last: bool = True
    time: Seconds | None = None


KINDS: dict[str, type[_Record]] = {
    "run": _Run, "stage": _Stage, "evaluation": _Evaluation, "other-evaluation": _Evaluation, "refined": _Score,
    "trial": _Trial, "training": _Training, "original-training": _Training, "training-cost": _Number,
    "latency": _Latency, "correction": _Correction, "latency-scale": _Scale, "device-latency": _DeviceLatency,
    "original": _Original, "int8": _Int8, "test": _Test, "recalibrate": _Recalibrate,
    "evaluation-precision": _Word, "precision": _Word, "batch": _Batch, "start": _Attempt, "end": _Attempt,
}  # fmt: skip


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError, with the key, for a record that cannot be one.

    >>> check_record({"kind": "stage", "name": "search", "seconds": -1.0})
    Traceback (most recent call last):
        ...
    ValueError: seconds: Input should be greater than or equal to 0
    """
    model = KINDS.get(record["kind"])
    if model is None:
        return
    try:
        model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None
