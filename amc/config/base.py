"""What all sections of the configuration have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from amc.config.messages import one_line
from amc.config.renamed import current
from amc.config.values import LIMIT, read
from amc.errors import ConfigError

T = TypeVar("T")
Auto = Literal["auto"]
AUTO: Auto = "auto"
"""The value of a setting that is decided in the run."""

Limit = Annotated[str, LIMIT]
Share = Annotated[float, Field(ge=0, le=1)]
Threads = Annotated[int, Field(ge=1, le=4096)]


def unless_auto(value: T | Auto) -> T | None:
    """A setting's value, None where it is to be decided in the run.

    >>> unless_auto(3), unless_auto("auto")
    (3, None)
    """
    return None if isinstance(value, str) and value == AUTO else value


def setting(default: Any, help_text: str, flag: str, **bounds: float) -> Any:
    """A field with the text and the option that the command line shows for it, and its ``bounds`` (ge, gt, le, lt)."""
    extra: Any = {"flag": flag}
    return Field(default, description=help_text, json_schema_extra=extra, **bounds)  # type: ignore[call-overload]


class Settings(BaseModel):
    """A section of the configuration. What is wrong raises ConfigError, in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    section: ClassVar[str] = ""
    """The path of this section in the tree."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**current(values, self.section))
        except ValidationError as error:
            raise ConfigError(one_line(error, type(self))) from None

    # as pydantic's own: inner sections are then validated within the outer one, whose errors name the place
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def replace(self, **changes: Any) -> Self:
        """These settings with some of them changed.

        >>> from amc.config import SearchConfig
        >>> SearchConfig().replace(evaluations=5).evaluations
        5
        """
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """Texts are numbers where a number is wanted; nothing else is taken for something of another type."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(wanted, type) and issubclass(wanted, Settings):
            return {} if value is None else value
        return read(value, wanted)
