"""Registries: what users can choose by name, of every kind in the same way.

An entry comes with amc, from an installed package's entry point (group ``amc.searchers``, ``amc.rewards``, …), or from
a file of the user's own (``path/to/file.py:name``). Its settings are the keyword-only parameters of its function:

>>> from typing import Annotated
>>> def search(problem, evaluations, seed, *, moves: Annotated[int, about("sites changed at a time", ge=1)] = 2): ...
>>> settings_of(search)[0]
Parameter(name='moves', default=2, help='sites changed at a time, at least 1')
>>> options("my.py:search", search, {"moves": "3"})
{'moves': 3}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from pydantic import Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from amc.config.base import Settings
from amc.config.messages import bounds, one_line
from amc.errors import AmcError, ConfigError, did_you_mean, first_line
from amc.runtime.plugins import is_plugin, load_plugin

T = TypeVar("T")

_SIMPLE = (bool, int, float, str)


def about(help_text: str, **limits: float) -> Any:
    """What a setting is for, and its bounds (ge, gt, le, lt): the second part of an ``Annotated`` parameter."""
    return Field(description=help_text, **limits)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What a name stands for. Its module is imported when it is used."""

    name: str
    summary: str
    where: str = ""
    """``module:object`` of one that comes with amc."""
    reference: str = ""
    """Where it is described: authors and year, arXiv number."""
    loader: Callable[[], T] | None = None
    """Gives the object, where that is not what ``where`` names."""
    own: bool = True
    """Whether it comes with amc."""

    @property
    def has_settings(self) -> bool:
        """Whether the object is a function whose settings users give by name."""
        return False

    def load(self) -> T:
        """The object itself."""
        if self.loader is not None:
            return self.loader()
        module, _, attribute = self.where.partition(":")
        found: T = getattr(import_module(module), attribute)
        return found


@dataclass(frozen=True)
class FunctionEntry(Entry[T]):
    """A function: its settings are its keyword-only parameters."""

    @property
    def has_settings(self) -> bool:
        return True


class Registry(Generic[T]):
    """The entries of one kind."""

    def __init__(self, kind: str, group: str, entries: Iterable[Entry[T]], forms: Iterable[str] = ()) -> None:
        """``forms``: what names may look like besides, for error messages."""
        self.kind, self.group, self._forms = kind, group, [*forms, "file.py:name"]
        self._own = {entry.name: entry for entry in entries}

    def entries(self) -> dict[str, Entry[T]]:
        """All by name: amc's own, then what installed packages add. Nothing of theirs is imported."""
        found = dict(self._own)
        for point in metadata.entry_points(group=self.group):
            found.setdefault(point.name, self._installed(point))
        return found

    def entry(self, name: str) -> Entry[T]:
        """What a name, or ``file.py:name``, stands for. Raises ConfigError."""
        if name in self._own:
            return self._own[name]
        if is_plugin(name):
            return Entry(name, "of your own", loader=lambda: load_plugin(name), own=False)  # type: ignore[arg-type,return-value]
        known = self.entries()
        if name not in known:
            raise ConfigError(f"unknown {self.kind} '{name}'.{did_you_mean(name, [*known, *self._forms])}")
        return known[name]

    def load(self, name: str) -> T:
        """The object that a name stands for. Raises ConfigError."""
        return self.entry(name).load()

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Within this context an entry is called. What one that is not amc's own raises becomes a ConfigError.

        Errors of amc, of files and of memory are not its fault, and stay as they are.
        """
        try:
            yield
        except (AmcError, OSError, MemoryError):
            raise
        except Exception as error:
            if self.entry(name).own:
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"the {self.kind} {name} fails: {reason}") from error

    def _installed(self, point: metadata.EntryPoint) -> Entry[T]:
        def load() -> T:
            try:
                found: T = point.load()
            except Exception as error:
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise ConfigError(f"the {self.kind} {point.name} ({point.value}) cannot be loaded: {reason}") from error
            return found

        return Entry(point.name, f"of an installed package ({point.value})", loader=load, own=False)


@dataclass(frozen=True)
class Parameter:
    """A setting of an entry."""

    name: str
    default: Any
    help: str


def settings_of(function: Callable[..., Any]) -> list[Parameter]:
    """The settings of a function: its keyword-only parameters, with what `about` says of them."""
    found = []
    for name, field in _model(function).model_fields.items():
        told = ", ".join(filter(None, (field.description, bounds(field))))
        found.append(Parameter(name, "(required)" if field.is_required() else field.default, told))
    return found


def options(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings ``given`` for a function as it takes them. Raises ConfigError for unknown ones and wrong values."""
    model = _model(function)
    try:
        read = model.model_validate(dict(given))
    except ValidationError as error:
        line = one_line(error, model).replace("unknown key", "unknown setting", 1)
        none = "" if model.model_fields else " It has no settings."
        raise ConfigError(f"{name}: {line}{none}") from None
    return {key: getattr(read, key) for key in model.model_fields if key in read.model_fields_set}


def _model(function: Callable[..., Any]) -> type[Settings]:
    """The keyword-only parameters of a function as a pydantic model."""
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = _field(_hint(function, parameter, type(default)), default)
    return create_model("Options", __base__=Settings, **fields)


def _hint(function: Callable[..., Any], parameter: inspect.Parameter, otherwise: type) -> Any:
    """The parameter's annotation. Those of other parameters may mean nothing here."""
    holder = type("Holder", (), {"__annotations__": {parameter.name: parameter.annotation}})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        found = get_type_hints(holder, names, include_extras=True)[parameter.name]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return otherwise
    return otherwise if found is parameter.empty else found


def _field(hint: Any, default: Any) -> Any:
    described = next((part for part in get_args(hint) if isinstance(part, FieldInfo)), None)
    if described is None and hint not in _SIMPLE and get_origin(hint) is None:
        hint = Any  # the function says what it takes
    return (hint, default) if default is not ... else (hint, Field())
