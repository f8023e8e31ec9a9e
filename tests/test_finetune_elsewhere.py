"""What comes back is an ordinary module: the documentation's loops train it, also in two processes."""

import copy
import pickle
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import assert_same, built, bundled, output, pruned, random_kept
from processes import worker
from sklearn.datasets import load_digits
from test_bundle import OLD
from torch import multiprocessing, nn

import amc

DOC = Path(__file__).parent.parent / "docs" / "finetune-elsewhere.md"
PLAIN, ACCELERATE, PROCESSES, ONNX = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)


def score(model: nn.Module) -> float:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return float((output(model.eval(), images).argmax(1) == torch.tensor(digits.target)).float().mean())


@pytest.fixture(autouse=True)
def beside_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OLD, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, DOC.name, "exec"), names)
    return names


def test_plain_pytorch_and_accelerate() -> None:
    before = score(amc.load("bundle"))
    torch.manual_seed(0)
    names = run(PLAIN, {})
    assert score(names["model"]) > before + 0.2
    tuned = amc.load("bundle")
    tuned.load_state_dict(torch.load("tuned.pt", weights_only=True))
    assert score(tuned) == score(names["model"])
    run(ACCELERATE, names)
    assert score(names["tuned"]) > before + 0.1


def test_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, PROCESSES), nprocs=2)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_pruned_network_copies_pickles_compiles_and_exports() -> None:
    model, example, graph, _ = built("resnet8-digits")
    smaller = pruned(model, graph, random_kept(graph, np.random.default_rng(0)))
    images = torch.randn(3, *example.shape[1:])
    wanted = output(smaller, images)
    for other in (
        copy.deepcopy(smaller),
        pickle.loads(pickle.dumps(smaller)),  # noqa: S301
        torch.jit.trace(smaller, images),
        torch.compile(smaller, backend="aot_eager"),
    ):
        assert_same(output(other, images), wanted)
    other = copy.deepcopy(smaller)
    other.load_state_dict(smaller.state_dict())
    assert len(list(other.parameters())) == len(list(model.parameters()))
    cut = amc.apply(bundled(), "bundle/policy.json")
    assert_same(output(torch.jit.script(cut), images), output(cut, images))


def test_the_ways_to_load_a_bundle() -> None:
    load, archive = re.findall(r"```python\n(.*?)```", (DOC.parent / "bundle.md").read_text(), re.DOTALL)
    names = run(load, {"model": bundled()})
    names = run(archive, {"torch": torch, "network": amc.load("bundle"), "images": torch.zeros(2, 1, 8, 8)})
    assert Path("model.pt2").stat().st_size > 1000
    images = torch.ones(3, 1, 8, 8)
    assert_same(output(names["program"].module(), images), output(names["network"], images))


def test_back_into_onnx() -> None:
    from amc.latency import Runner

    images = torch.randn(4, 1, 8, 8)
    names = run(ONNX, {"torch": torch, "model": amc.load("bundle"), "images": images})
    assert_same(torch.from_numpy(Runner(Path("tuned.onnx"))(images.numpy())), output(names["model"], images))
