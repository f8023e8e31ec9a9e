"""Within a memory limit: the same moments in several passes, from files, and batches that fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import Own, built, transformer
from torch import Tensor
from torch.utils.data import TensorDataset

from amc.config import DataConfig
from amc.graph.build import build_graph
from amc.reconstruction.moments import Moments, collect, moment_store, passes, readers
from amc.runtime import memory
from amc.runtime.memory import GIB, Memory, SpillStore
from amc.task import load_data, make_task
from amc.task.datasets import splits_of


@pytest.fixture(scope="module")
def task():
    model, _, _, _ = built("resnet8-digits")
    return make_task("resnet8", model, load_data(DataConfig(calibration=40)), torch.device("cpu"))


def test_passes_and_files_do_not_change_the_moments(task, tmp_path: Path) -> None:
    """Memory for one layer at a time, with all moments in files, gives the same results as unlimited memory."""
    graph = build_graph(task.model, task.example)
    layers = readers(graph, task.model)
    whole = collect(task, layers, 3)
    store = moment_store(Memory(0), tmp_path)
    shares: list[float] = []
    small = collect(task, layers, 3, 64, store, 1, shares.append)
    assert len(shares) == len(layers) == store.filed == len(list(tmp_path.iterdir()))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert list(small) == list(whole)
    assert "absent" not in small
    for name, moments in whole.items():
        assert small[name].count == moments.count
        assert torch.equal(small[name].mean, moments.mean)
        assert torch.equal(small[name].covariance, moments.covariance)


def test_layers_that_are_never_called_have_no_moments() -> None:
    """Attention uses the weights of its last layer without calling it."""
    torch.manual_seed(0)
    images, classes = torch.randn(20, 3, 8, 8), torch.arange(20) % 10
    data = TensorDataset(images, classes)
    splits = splits_of(data, data, None, DataConfig())
    task = make_task("vit", transformer(Own(12, 3)), splits, torch.device("cpu"))
    layers = readers(build_graph(task.model, task.example), task.model)
    found = collect(task, [*layers, replace(layers[0], name="attention.mha.out_proj")], 0, limit=1)
    assert "attention.mha.out_proj" not in found
    assert {"up", "down"} & set(found)


def test_layers_are_dealt_to_passes_that_fit() -> None:
    lengths = [("a", 10), ("b", 10), ("c", 20), ("d", 5), ("e", 5)]
    assert passes(lengths, None) == [["a", "b", "c", "d", "e"]]
    assert passes(lengths, 12 * 200) == [["a", "b"], ["c"], ["d", "e"]]
    assert passes(lengths, 1) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert passes([], 1) == []


def test_a_store_spills_what_does_not_fit(tmp_path: Path) -> None:
    def take(m: Moments) -> dict[str, Tensor]:
        return {"mean": m.mean, "covariance": m.covariance}

    store = SpillStore(take, lambda t: Moments(t["mean"], t["covariance"], 1), 100, tmp_path)
    for name, size in (("a", 3), ("b", 9), ("c", 1)):
        store.put(name, Moments(torch.ones(size), torch.eye(size), 1))
    assert store.filed == 1
    assert set(store) == {"a", "b", "c"}
    assert len(store) == 3
    assert torch.equal(store["b"].covariance, torch.eye(9))
    with pytest.raises(KeyError):
        store["d"]


def test_shares_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    six = Memory.of(6)
    assert six.limit == 6 * GIB
    assert six.batch(GIB // 2, 250) == 3
    assert six.batch(10 * GIB, 250) == 1
    assert six.batch(0, 250) == six.batch(1000, 250) == 250
    monkeypatch.setattr(memory, "installed", lambda: 10 * GIB)
    assert Memory.of(0).limit == 5 * GIB
    monkeypatch.undo()
    assert 1 << 28 < memory.installed() < 1 << 50
