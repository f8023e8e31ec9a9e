"""Settings from YAML files, which may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from amc.config.secrets import with_passwords
from amc.config.settings import Config
from amc.config.tree import from_dict
from amc.config.values import shown
from amc.errors import ConfigError, printable

LARGEST = 1 << 20
"""Bytes of a file."""
_NODES, _DEPTH, _SCALAR = 50_000, 40, 10_000
"""Values of a file with its aliases written out, levels of it, and characters of one value."""


def from_yaml(path: str | Path) -> Config:
    """A configuration from a YAML file, read with the safe loader."""
    return from_dict(read_yaml(path))


def from_run(folder: Path, passwords: bool = False) -> Config:
    """The configuration of the run in ``folder``, whichever version wrote it: nobody is warned about its words.

    With ``passwords`` those that the file does not hold are taken from the environment (`amc.config.secrets`).
    """
    values = read_yaml(folder / "config.yaml")
    return from_dict(with_passwords(values) if passwords else values, quiet=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file of at most 1 MiB. Raises ConfigError.

    Nothing is built before the file is known to be small with all of its aliases written out.
    """
    text = _text(Path(path))
    try:
        _limit(text)
        values = yaml.load(text, _Loader)  # noqa: S506  (it is a safe loader)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ConfigError(f"{path} is not YAML: {printable(str(error))}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, but must hold keys and values.")
    return values


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the nested ``changes`` put over it.

    >>> merge({"search": {"evaluations": 60, "refine": 10}}, {"search": {"refine": 5}})
    {'search': {'evaluations': 60, 'refine': 5}}
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


_Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc,valid-type]
    """The safe loader, but a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.YAMLError(f"the key {shown(key.value)} is there twice, {str(node.start_mark).strip()}")
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"cannot read {path}: it is {'a directory' if path.is_dir() else 'no regular file'}.")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(f"cannot read {path}: it is larger than {LARGEST >> 20} MiB.")
        return content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    except ValueError:  # of the path: a NUL character
        raise ConfigError(f"cannot read {shown(str(path))}: this can be no path.") from None


def _limit(text: str) -> None:
    """Raise YAMLError for what would be too much when it is built: a value with all aliases in it is counted."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # collections that are being read: anchor, values before it
    count = 0
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"*{event.anchor} stands for nothing, or for what it is itself within")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > _SCALAR:
                raise yaml.YAMLError(f"a value of more than {_SCALAR:,} characters")
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.pop(event.anchor or "", None)
            open_.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = count - before
        if count > _NODES:
            raise yaml.YAMLError(f"more than {_NODES:,} values, aliases written out")
        if len(open_) > _DEPTH:
            raise yaml.YAMLError(f"nested more than {_DEPTH} levels deep")
