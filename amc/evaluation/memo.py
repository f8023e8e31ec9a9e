"""Results that runs of one network on the same data share: the first run computes them, the others read the cache.

The key of every result covers all that it depends on: the network's weights, structure and outputs, the samples
themselves, the settings, the code of this package, the libraries, and the files of plug-ins.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.config import Config
from amc.errors import ConfigError
from amc.evaluation.criterion_search import best_orders
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.settings import Dtype, EvaluationSettings, SearchObjective
from amc.graph.sites import Graph
from amc.importance import COLLECTORS, SEARCH, Need, compared, criterion_files, is_search, load_criterion, rank, score
from amc.importance import collect as collect_statistics
from amc.latency.command import COMMAND
from amc.operators.policy import fingerprint
from amc.operators.registry import foreign, load_operators
from amc.reconstruction.moments import Moments, collect, moment_store, readers, sums_size
from amc.runtime.cache import Cache, Resting, Table, cache_folder
from amc.runtime.hashing import tensors_digest
from amc.runtime.memory import Memory
from amc.runtime.plugins import file_digests
from amc.runtime.provenance import code_version, cpu_name, library_versions
from amc.space.budget import Space
from amc.task import Split, Task, batches, evaluate, nested
from amc.task.nested import Nested

SAME_DEVICE = 0.05
"""Largest relative difference between two runs' measurements of one network on an unchanged device."""


def open_cache(config: Config, resting: Resting) -> Cache:
    """Open the configured cache: none (None or ``off``), the user's own (``auto``), or a folder."""
    if config.cache is None or config.cache == "off":
        return Cache(None)
    return Cache(cache_folder() if config.cache == "auto" else Path(config.cache), resting=resting)


class Memo:
    """One run's view of the cache."""

    def __init__(self, cache: Cache, task: Task, config: Config) -> None:
        self.cache, self._task, self._config = cache, task, config
        self.chosen_criteria: dict[str, str] = {}
        """With ``--criterion search``, which criterion was best at each site; empty where the cache held the orders."""

    @cached_property
    def _basis(self) -> dict[str, Any]:
        """The network, the code and the libraries: the part of the key that all results have."""
        task = self._task
        outputs, _ = self._outputs
        return {
            "weights": fingerprint(task.model),
            "structure": hashlib.sha256(repr(task.model).encode()).hexdigest(),
            "outputs": digest(outputs),
            "device": task.device.type,
            "code": code_version(),
            "plugins": file_digests([self._config.model.name, self._config.data.source]),
            "libraries": library_versions(),
        }

    @cached_property
    def _outputs(self) -> tuple[Any, Nested]:
        """The network's outputs for the first few samples, and their targets."""
        task = self._task
        inputs, targets = task.splits.search.fetch(torch.arange(min(8, len(task.splits.search))))
        with torch.inference_mode():
            return nested.call(task.model, nested.to(inputs, task.device)), nested.to(targets, task.device)

    @cached_property
    def _objective_identity(self) -> list[Any]:
        """The objective: its name, its file, and its losses and metrics of the first few samples."""
        objective, named = self._task.objective, self._config.objective
        found = [digest(objective.loss(*self._outputs)), digest(objective.metric(*self._outputs))]
        return [objective.name, named, file_digests([named]), *found]

    @cached_property
    def _calibration(self) -> str:
        return split_digest(self._task.splits.calibration)

    @cached_property
    def _search(self) -> str:
        return split_digest(self._task.splits.search)

    def moments(
        self,
        graph: Graph,
        memory: Memory | None = None,
        folder: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Mapping[str, Moments]:
        """See `amc.reconstruction.moments.collect`. Moments that exceed ``memory`` spill to ``folder``, uncached."""
        layers = readers(graph, self._task.model)
        batch, limit = min(64, self._task.batch), memory.share if memory else None
        compute = partial(
            collect, self._task, layers, self._config.seed, batch, moment_store(memory, folder), limit, progress
        )
        if self.cache.folder is None or (memory and sums_size(self._task.model, layers) > memory.share):
            return compute()
        return _moments(self.cache.tensors("moments", self._calibrated, lambda: _flat(compute())))

    def orders(self, graph: Graph, moments: Mapping[str, Moments], memory: Memory | None = None) -> list[Tensor]:
        """See `amc.importance.rank`; ``memory`` limits the choice of a criterion."""
        found = self.cache.tensors("orders", self._ordered, lambda: self._rank(graph, moments, memory))
        return [found[name] for name in sorted(found)]

    def _rank(self, graph: Graph, moments: Mapping[str, Moments], memory: Memory | None) -> dict[str, Tensor]:
        """Channel orders by names that sort as the sites do."""
        name = self._config.search.criterion
        found = (
            self._searched_orders(graph, moments, memory) if is_search(name) else self._orders_by(name, graph, moments)
        )
        return {f"{index:04d}": order for index, order in enumerate(found)}

    def _orders_by(self, name: str, graph: Graph, moments: Mapping[str, Moments]) -> list[Tensor]:
        statistics = {need: self._statistics(need, graph) for need in sorted(load_criterion(name).needs)}
        return rank(name, graph, self._task.model, moments, statistics, self._config.seed)

    def _searched_orders(self, graph: Graph, moments: Mapping[str, Moments], memory: Memory | None) -> list[Tensor]:
        """At every site the order of the best criterion. One of the usual criteria that finds nothing is left out."""
        search, found = self._config.search, dict[str, list[Tensor]]()
        for name in compared(search.criterion):
            try:
                found[name] = self._orders_by(name, graph, moments)
            except ConfigError:
                if search.criterion != SEARCH:
                    raise
        orders = list(found.values())
        best = best_orders(self._task, graph, moments, orders, search.objective, search.least_share, memory)
        self.chosen_criteria = {site.name: list(found)[own] for site, own in zip(graph.sites, best, strict=True)}
        return [orders[own][site] for site, own in enumerate(best)]

    def channel_scores(self, graph: Graph, moments: Mapping[str, Moments]) -> list[Tensor]:
        """See `amc.importance.score`."""
        name = self._config.search.criterion
        statistics = {need: self._statistics(need, graph) for need in sorted(load_criterion(name).needs)}
        return score(name, graph, self._task.model, moments, statistics, self._config.seed)

    def _statistics(self, need: Need, graph: Graph) -> dict[str, Tensor]:
        """See `amc.importance.collect`."""
        if need not in COLLECTORS:
            return {}
        return self.cache.tensors(
            need.value,
            lambda: {**self._calibrated(), "task": self._objective_identity},
            lambda: collect_statistics(need, self._task, graph),
        )

    def scores(self, settings: EvaluationSettings) -> Table:
        """Scores and races of policies (`amc.evaluation.cached`)."""
        return self.cache.table("scores", lambda: self._scored(settings))

    def site_errors(self, objective: SearchObjective) -> Table:
        """Errors of sites at their settings."""
        return self.cache.table("errors", lambda: self._site_errors(objective))

    def findings(self, settings: EvaluationSettings) -> Table:
        """Intermediate results of searchers (`amc.evaluation.problem.Problem.memo`)."""
        return self.cache.table("findings", lambda: self._scored(settings))

    def search_identity(self, space: Space) -> list[Any]:
        """The part of a searcher's key that comes from the space, the reward and racing."""
        search = self._config.search
        settings = [list(widths) for widths in space.settings]
        return [settings, search.reward, file_digests([search.reward]), search.race]

    def faster_dtype(self, evaluator: Evaluator) -> Dtype:
        """See `Evaluator.faster_dtype`. Cached, because runs that share scores must use the same dtype."""
        here = [cpu_name(), torch.get_num_threads()]
        found = self.cache.table("precisions", lambda: self._basis).once(here, evaluator.faster_dtype)
        return "bfloat16" if found == "bfloat16" else "float32"

    def original_score(self, part: str, split: Split) -> tuple[float, float]:
        """Mean loss and metric of the original on a split."""
        table = self.cache.table("baselines", lambda: self._baseline_on(part, split))
        known = table.once(part, lambda: list(evaluate(self._task.model, self._task, split)))
        return known[0], known[1]

    def profile(self, key: Mapping[str, Any], learn: Callable[[], bytes]) -> bytes:
        """A latency profile (`amc.latency.profiling.profile_key`), which does not depend on the network's weights.

        The machine may have changed since the profile was made, so every run corrects the predictions by its own
        measurements.
        """
        identity = {**key, "host": socket.gethostname(), "code": code_version()}
        return _bytes(self.cache.tensors("profiles", lambda: identity, lambda: _tensor(learn())))

    def device_times(self, key: str, ms: float) -> Table:
        """Measurements of this network's policies by the same command or class on the user's device.

        ``ms`` is this run's own measurement for ``key``. If it differs from the stored one, the device has changed, and
        another table is used.
        """
        named, network = str(self._config.search.latency_model), fingerprint(self._task.model)
        files = {**file_digests([named]), **_mentioned(named)}
        generation = 0
        while True:
            identity = {"model": named, "files": files, "network": network, "generation": generation}
            table = self.cache.table("device-times", lambda identity=identity: identity)  # type: ignore[misc]
            known = table.get(key)
            if known is None:
                table.put(key, ms)
            if known is None or abs(known / ms - 1) <= SAME_DEVICE:
                return table
            generation += 1

    def original_onnx(self, export: Callable[[], bytes]) -> bytes:
        """The original's ONNX file."""
        return _bytes(self.cache.tensors("onnx", self._exported, lambda: _tensor(export())))

    def _exported(self) -> dict[str, Any]:
        return {**self._basis, "example": digest(self._task.example), "onnx": library_versions(("onnx", "onnxscript"))}

    def _calibrated(self) -> dict[str, Any]:
        return {**self._basis, "calibration": self._calibration, "seed": self._config.seed}

    def _ordered(self) -> dict[str, Any]:
        name = self._config.search.criterion
        found = {**self._calibrated(), "criterion": [name, criterion_files(name)]}
        if is_search(name):
            search = self._config.search
            return {**found, "task": self._objective_identity, "compared": [search.objective, search.least_share]}
        uses_loss = load_criterion(name).needs & {Need.GRADIENTS, Need.CURVATURE}
        return {**found, "task": self._objective_identity} if uses_loss else found

    def _operators(self) -> dict[str, Any]:
        """The operators, if some are not part of amc, because the sites depend on them."""
        named = self._config.search.operator_names or ()
        if not named or not foreign(load_operators(named)):
            return {}
        return {"operators": [list(named), file_digests(named)]}

    def _site_errors(self, objective: SearchObjective) -> dict[str, Any]:
        found = {**self._ordered(), "task": self._objective_identity, "objective": objective}
        return {**found, **self._operators()}

    def _scored(self, settings: EvaluationSettings) -> dict[str, Any]:
        return {
            **self._ordered(),
            **self._operators(),
            "task": self._objective_identity,
            "search": self._search,
            "settings": settings.to_dict(),
        }

    def _baseline_on(self, part: str, split: Split) -> dict[str, Any]:
        return {
            **self._basis,
            "task": self._objective_identity,
            part: self._search if part == "search" else split_digest(split),
        }


def _mentioned(command: str) -> dict[str, str]:
    """SHA-256 of the files that a command mentions, by path."""
    words = [Path(word) for word in command.partition(":")[2].split()] if command.startswith(COMMAND) else []
    return {str(word): hashlib.sha256(word.read_bytes()).hexdigest() for word in words if word.is_file()}


def split_digest(split: Split) -> str:
    """SHA-256 over all inputs and targets of a split."""
    sha = hashlib.sha256()
    for batch in batches(split, 250):
        sha.update(digest(batch).encode())
    return sha.hexdigest()


def digest(tensors: Any) -> str:
    """SHA-256 over all tensors of a nested structure, in order."""
    return tensors_digest(("", leaf) for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))


def _tensor(content: bytes) -> dict[str, Tensor]:
    return {"content": torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return tensors["content"].numpy().tobytes()


def _flat(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, found in moments.items():
        flat |= {f"mean:{name}": found.mean, f"covariance:{name}": found.covariance,
                 f"count:{name}": torch.tensor(found.count)}  # fmt: skip
    return flat


def _moments(flat: Mapping[str, Tensor]) -> dict[str, Moments]:
    names = [key.removeprefix("mean:") for key in flat if key.startswith("mean:")]
    return {name: Moments(flat[f"mean:{name}"], flat[f"covariance:{name}"], int(flat[f"count:{name}"]))
            for name in names}  # fmt: skip
