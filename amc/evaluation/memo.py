"""Results that runs of one network on the same data share: the first run computes them, the others read the cache.

What identifies a result is in `amc.evaluation.keys`.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc.config import Config
from amc.errors import ConfigError
from amc.evaluation.criterion_search import best_orders
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.keys import Keys
from amc.evaluation.settings import Dtype, EvaluationSettings, SearchObjective
from amc.graph.sites import Graph
from amc.importance import COLLECTORS, SEARCH, Need, compared, is_search, load_criterion, rank, score
from amc.importance import collect as collect_statistics
from amc.latency.command import COMMAND
from amc.operators.policy import fingerprint
from amc.reconstruction.moments import Moments, collect, moment_store, readers, sums_size
from amc.runtime.cache import Cache, Table, cache_folder
from amc.runtime.entry_locks import Resting
from amc.runtime.memory import Memory
from amc.runtime.plugins import file_digests
from amc.runtime.provenance import code_version, cpu_name
from amc.space.budget import Space
from amc.task import Split, Task, evaluate

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
        self.cache, self._task, self._config, self._keys = cache, task, config, Keys(task, config)
        self.chosen_criteria: dict[str, str] = {}
        """With ``--criterion search``, which criterion was best at each site; empty where the cache held the orders."""

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
        return _moments(self.cache.tensors("moments", self._keys.calibrated, lambda: _flat(compute())))

    def orders(self, graph: Graph, moments: Mapping[str, Moments], memory: Memory | None = None) -> list[Tensor]:
        """See `amc.importance.rank`; ``memory`` limits the choice of a criterion."""
        found = self.cache.tensors("orders", self._keys.ordered, lambda: self._rank(graph, moments, memory))
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
            self._keys.statistics,
            lambda: collect_statistics(need, self._task, graph),
        )

    def scores(self, settings: EvaluationSettings) -> Table:
        """Scores and races of policies (`amc.evaluation.cached`)."""
        return self.cache.table("scores", lambda: self._keys.scored(settings))

    def site_errors(self, objective: SearchObjective) -> Table:
        """Errors of sites at their settings."""
        return self.cache.table("errors", lambda: self._keys.site_errors(objective))

    def findings(self, settings: EvaluationSettings) -> Table:
        """Intermediate results of searchers (`amc.evaluation.problem.Problem.memo`)."""
        return self.cache.table("findings", lambda: self._keys.scored(settings))

    def search_identity(self, space: Space) -> list[Any]:
        """The part of a searcher's key that comes from the space, the reward and racing."""
        search = self._config.search
        settings = [list(widths) for widths in space.settings]
        return [settings, search.reward, file_digests([search.reward]), search.race]

    def faster_dtype(self, evaluator: Evaluator) -> Dtype:
        """See `Evaluator.faster_dtype`. Cached, because runs that share scores must use the same dtype."""
        here = [cpu_name(), torch.get_num_threads()]
        found = self.cache.table("precisions", lambda: self._keys.basis).once(here, evaluator.faster_dtype)
        return "bfloat16" if found == "bfloat16" else "float32"

    def original_score(self, part: str, split: Split) -> tuple[float, float]:
        """Mean loss and metric of the original on a split."""
        table = self.cache.table("baselines", lambda: self._keys.original_score(part, split))
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
        return _bytes(self.cache.tensors("onnx", self._keys.exported, lambda: _tensor(export())))


def _mentioned(command: str) -> dict[str, str]:
    """SHA-256 of the files that a command mentions, by path."""
    words = [Path(word) for word in command.partition(":")[2].split()] if command.startswith(COMMAND) else []
    return {str(word): hashlib.sha256(word.read_bytes()).hexdigest() for word in words if word.is_file()}


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
