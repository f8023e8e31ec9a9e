"""The base of the models of result.json, and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]


def described(description: str, default: Any = ..., **more: Any) -> Any:
    """A field with its description; with a ``default`` it is optional."""
    return Field(default, description=description, **more)


class ResultPart(BaseModel):
    """A part of result.json. Types are strict: no value is converted to a number. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)
