"""Objects that the user names as ``path/to/file.py:name``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from amc.errors import AmcError, ConfigError, did_you_mean, first_line


def is_plugin(name: str) -> bool:
    """Whether a name is of the form ``file.py:object``."""
    return ".py:" in name


def file_digests(names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files of those names that are plug-ins: what one version computes is not the other's."""
    files = {name: Path(name.rpartition(":")[0]) for name in names if is_plugin(name)}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def load_plugin(name: str) -> Callable[..., Any]:
    """The callable that ``file.py:object`` names. The file is run as Python: name only files you trust."""
    return load_object(name, callable)  # type: ignore[no-any-return]


def load_object(name: str, wanted: Callable[[Any], bool] = lambda found: True) -> Any:
    """Whatever ``file.py:object`` names, if it is as ``wanted``. Raises ConfigError."""
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{name}: there is no file {file}.")
    module_name = f"_amc_plugin_{path.resolve().as_posix()}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{file} is not a Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        sys.path.insert(0, str(path.resolve().parent))  # it may import its neighbours
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"{file} fails on import: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(str(path.resolve().parent))
    found = getattr(module, attribute, None)
    if found is None or not wanted(found):
        names = [key for key, value in vars(module).items() if wanted(value) and not key.startswith("_")]
        kind = "nothing callable" if wanted is callable else "nothing"
        raise ConfigError(f"{file} has {kind} named '{attribute}'.{did_you_mean(attribute, names)}")
    return found


def made_by_plugin(name: str, wrong: type[AmcError]) -> Any:
    """What the factory ``file.py:factory`` gives. Whatever it throws is its user's mistake: ``wrong``, in one line."""
    return made_by(name, load_plugin(name), wrong)


def made_by(name: str, factory: Callable[..., Any], wrong: type[AmcError]) -> Any:
    """What the user's ``factory`` of that name gives. What it throws is raised as ``wrong``, in one line."""
    try:
        return factory()
    except AmcError:
        raise
    except Exception as error:
        raise wrong(f"{name} fails: {type(error).__name__}: {first_line(error)}") from error
