"""The Python API: a model, data and a budget in; a smaller network out.

::

    result = amc.compress(model, train=loader, test=test_loader, budget=amc.Budget(flops=0.5))
    result.model, result.policy, result.evaluations
    result.save("bundle")
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from amc.config import BudgetConfig, Config, ModelConfig, from_dict
from amc.envs import PruningEnv
from amc.errors import BundleError, ConfigError
from amc.evaluation import Problem
from amc.pipeline.checks import check, check_without_labels
from amc.pipeline.onnx_files import load_onnx as open_onnx_file
from amc.pipeline.onnx_files import open_onnx_alone
from amc.pipeline.opening import open_task, pick_device
from amc.pipeline.pipeline import compress_task
from amc.pipeline.problems import problem_of
from amc.pipeline.result import Result
from amc.runtime.arguments import PATH, expect
from amc.runtime.monitor import Monitor
from amc.space.budget import LONGEST, Budget
from amc.task import Objective, Splits, make_task
from amc.task.checks import copied, unwrapped
from amc.task.datasets import splits_of
from amc.task.inputs import splits_of_inputs
from amc.task.metrics import CLASSIFICATION

_MONITOR = ("begin", "progress", "end", "say")


def compress(
    model: nn.Module | str | Path,
    train: Any,
    test: Any = None,
    budget: Budget | Mapping[str, Any] | float | str | None = None,
    search: Any = None,
    *,
    config: Config | Mapping[str, Any] | None = None,
    objective: Objective = CLASSIFICATION,
    name: str = "model",
    out: str | Path | None = None,
    monitor: Monitor | None = None,
) -> Result:
    """Compress ``model``, or the network in an ONNX file, to ``budget``. The model itself is not changed.

    ``train``, ``search`` and ``test`` are map-style datasets of (input, target), or DataLoaders over them, of
    which the dataset and the collate function are used. Calibration images are held out of ``train``, and so
    is the search split where none is given. ``test`` is read once, at the end. Without ``test`` (and ``search``),
    ``train`` are inputs without labels: tensors or arrays ``[N, ...]``, tuples or dicts of them, a dataset or a loader
    of inputs. All splits are parts of them, training distils from the original, and the metric is agreement with it.

    ``budget`` may also be its limits in a
    dict, or one limit on MACs (0.5). ``config``, an `amc.Config` or nested dicts as in YAML, sets everything else; its
    model, data and budget are not used. Without ``out`` the bundle is in a temporary folder. Nothing is
    printed: what happens is told to ``monitor``, or logged (`logging`, the logger ``amc``). Raises AmcError.
    """
    expect("model", model, (nn.Module, *PATH), "a torch.nn.Module or the path of an ONNX file")
    limits = Budget.of(budget)
    expect("config", config, (Config, Mapping), "an amc.Config or a dict", optional=True)
    expect("objective", objective, Objective, "an amc.Objective")
    expect("name", name, str, "a text")
    expect("out", out, PATH, "a path", optional=True)
    if monitor is not None and not all(callable(getattr(monitor, word, None)) for word in _MONITOR):
        raise ConfigError(f"monitor is a {type(monitor).__name__}, but must have the methods {', '.join(_MONITOR)}.")
    config = _config_of(config, limits)
    own_data = config.data.replace(name="own data", inputs=None)
    config = config.replace(model=ModelConfig(name=name), data=own_data)
    check(config)
    splits = _splits(train, test, search, config)
    if isinstance(model, nn.Module):
        own: nn.Module = copied(unwrapped(model))
    else:
        own, splits = open_onnx_file(model, splits)
    task = make_task(name, own, splits, pick_device(config.device), objective)
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise BundleError(f"{out} is a file: name a folder with out.")
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="amc-"))
    return compress_task(task, config, folder, monitor)


def _splits(train: Any, test: Any, search: Any, config: Config) -> Splits:
    """The splits of data with labels, or without where there is no ``test``."""
    if test is not None:
        return splits_of(train, test, search, config.data)
    if search is not None:
        raise ConfigError("search is given without test: give both for data with labels, or none for inputs only.")
    check_without_labels(config)
    return splits_of_inputs(train, config.data)


def make_problem(
    model: nn.Module | None = None,
    train: Any = None,
    search: Any = None,
    budget: Budget | Mapping[str, Any] | float | str = 0.5,
    *,
    config: Config | Mapping[str, Any] | None = None,
    objective: Objective = CLASSIFICATION,
    name: str = "model",
) -> Problem:
    """The problem that a search of `compress` would work on: legal policies, their costs, and what one scores.

    For environments (`gymnasium.make("amc.envs:amc/Pruning-v0", problem=problem)`) and searchers that are used by
    themselves (`amc.search.load_searcher("tpe")(problem, 20, 0)`). Without a ``model`` it is of the embedded example, a
    ResNet-8 on handwritten digits. Policies are scored on the whole search split: ``search``, or what is held out of
    ``train``. It takes seconds to minutes, since channel groups are found and calibrated. Latency cannot be limited.
    Raises AmcError.

    >>> import amc
    >>> problem = amc.make_problem(budget={"params": 0.5}, config={"data": {"calibration": 64, "search": 50}})
    >>> evaluation = problem.evaluate(problem.space.fit([1.0] * len(problem.space.names)))
    >>> evaluation.costs["params"] <= problem.space.limits["params"], 0 <= evaluation.metric <= 1
    (True, True)
    """
    expect("model", model, nn.Module, "a torch.nn.Module", optional=True)
    expect("config", config, (Config, Mapping), "an amc.Config or a dict", optional=True)
    expect("objective", objective, Objective, "an amc.Objective")
    expect("name", name, str, "a text")
    settings = _config_of(config, Budget.of(budget))
    check(settings)
    if model is None:
        return problem_of(open_task(settings), settings)
    if train is None:
        raise ConfigError("make_problem(model) needs data, too: train=, a dataset of (input, target) or a DataLoader.")
    splits = splits_of(train, train, search, settings.data)  # the test split is not read
    task = make_task(name, copied(unwrapped(model)), splits, pick_device(settings.device), objective)
    return problem_of(task, settings)


def make_environment(problem: Problem | None = None, render_mode: str | None = None, **of: Any) -> PruningEnv:
    """The environment ``amc/Pruning-v0`` over a problem, or over the one that `make_problem` makes of its arguments."""
    if problem is not None and of:
        raise ConfigError(f"an environment is made of a problem or of {', '.join(sorted(of))}, not of both.")
    return PruningEnv(make_problem(**of) if problem is None else problem, render_mode)


def _config_of(config: Config | Mapping[str, Any] | None, limits: Budget) -> Config:
    """The configuration, with these limits."""
    if isinstance(config, Mapping):
        config = from_dict(config)
    written = {field: None if v is None else str(v)[: LONGEST + 1] for field, v in vars(limits).items()}
    return (config or Config()).replace(budget=BudgetConfig(**written))


def load_onnx(path: str | Path, inputs: Any = None) -> nn.Module:
    """The network in an ONNX file as a torch module, compared with ONNX Runtime.

    It is called with tensors in the order of the file's inputs, or by their names, and gives a tensor, or a dict of
    them by the names of several outputs. ``inputs`` are at least 10 samples, as in `compress`; without them random ones
    are used, of the shapes that the file says. Raises AmcError.
    """
    expect("path", path, PATH, "a path")
    config = Config(model=ModelConfig(name=str(path)))
    if inputs is None:
        return open_onnx_alone(config)[0]
    return open_onnx_file(path, splits_of_inputs(inputs, config.data))[0]
