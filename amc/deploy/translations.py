"""torch's table of translations to ONNX is built once per process.

torch builds it anew for every export, which takes longer than the export of a small network. There is no public way to
pass a table on. So `shared_translations` replaces the function that builds it, only within an export, and does nothing
where torch has no such function.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_MODULE = "torch.onnx._internal.exporter._registration"


@contextmanager
def shared_translations() -> Iterator[None]:
    """Within this context, ``torch.onnx.export`` builds its table of translations only if no export has built it."""
    table = _class_of_tables()
    if table is None:
        yield
        return
    original = vars(table)["from_torchlib"]
    table.from_torchlib = staticmethod(functools.partial(_once, original.__get__(None, table)))
    try:
        yield
    finally:
        table.from_torchlib = original


@functools.cache
def _class_of_tables() -> Any:
    """torch's class, or None if this torch has none that is known here."""
    try:
        found = importlib.import_module(_MODULE).ONNXRegistry
    except (ImportError, AttributeError):
        return None
    return found if isinstance(vars(found).get("from_torchlib"), classmethod) else None


def _once(build: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return _built(build, "torchvision" in sys.modules, *args, **options)


@functools.cache
def _built(build: Callable[..., Any], _with_torchvision: bool, *args: Any, **options: Any) -> Any:
    """The table. It holds translations of torchvision's operators only if torchvision was imported before."""
    return build(*args, **options)
