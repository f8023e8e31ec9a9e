"""amc: fit a trained network into a hardware budget.

The public names are few and are imported lazily, so that ``import amc`` and ``amc --help`` stay quick. Nothing else is
imported here: until `amc.__main__` is reached, Ctrl-C is a traceback.
"""

from __future__ import annotations

import os

# envs/, search/, reports/ and configs/ live beside amc/ in a checkout; a wheel has them inside.
_HERE = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_HERE, "envs")):
    __path__.append(os.path.dirname(_HERE))

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from amc.api import compress, load_onnx, make_problem
    from amc.config import Config
    from amc.deploy.bundle import apply, load
    from amc.errors import AmcError
    from amc.operators.policy import Policy
    from amc.pipeline.pipeline import run
    from amc.pipeline.result import Result
    from amc.space.budget import Budget
    from amc.task import Objective

__version__ = "0.1.0"

_HOME = {
    "AmcError": "amc.errors",
    "Budget": "amc.space.budget",
    "Config": "amc.config",
    "Objective": "amc.task",
    "Policy": "amc.operators.policy",
    "Result": "amc.pipeline.result",
    "apply": "amc.deploy.bundle",
    "compress": "amc.api",
    "load": "amc.deploy.bundle",
    "load_onnx": "amc.api",
    "make_problem": "amc.api",
    "run": "amc.pipeline.pipeline",
}

__all__ = [
    "AmcError",
    "Budget",
    "Config",
    "Objective",
    "Policy",
    "Result",
    "__version__",
    "apply",
    "compress",
    "load",
    "load_onnx",
    "make_problem",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'amc' has no attribute {name!r}")
