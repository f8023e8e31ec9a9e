"""Networks that do not classify images, from end to end: other inputs, other outputs, other losses."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from networks import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import amc
from amc.cli import main
from amc.config import from_dict
from amc.deploy.export import check_parity
from amc.errors import AmcError, ConfigError, DataError, ModelError
from amc.latency import Runner
from amc.task import nested
from amc.task.metrics import CLASSIFICATION, load_objective

QUICK = from_dict(
    {"search": {"evaluations": 2}, "finetune": {"epochs": 1, "candidates": 1, "precision": "float32", "batch_size": 16}}
)


class Samples(Dataset):
    """(input, target) of tensors, tuples or dicts of tensors ``[N, ...]``."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return nested.length(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return nested.mapped(lambda x: x[index], self.inputs), nested.mapped(lambda x: x[index], self.targets)


def compressed(model: nn.Module, samples: Samples, objective: amc.Objective, out: Path) -> amc.Result:
    torch.manual_seed(0)
    return amc.compress(
        model, samples, samples, amc.Budget(flops=0.6), config=QUICK, objective=objective, out=out / "run"
    )


def conv1d(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, 5, stride, 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())


def test_a_signal_and_a_network_that_gives_a_tuple(tmp_path: Path) -> None:
    """``[N, C, T]`` to (logits, envelope): two losses, one of which teaches."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = m.b(m.a(x))
        return m.fc(inner.mean(2)), m.envelope(inner)

    torch.manual_seed(0)
    net = Net(forward, a=conv1d(2, 16, 1), b=conv1d(16, 24, 2), fc=nn.Linear(24, 3), envelope=nn.Conv1d(24, 1, 1))
    times = torch.arange(32) / 32
    classes = torch.arange(96) % 3
    signals = torch.sin(2 * torch.pi * (classes[:, None, None] + 1.0) * times + torch.tensor([[0.0], [1.0]]))
    samples = Samples(signals, (classes, signals[:, :1, ::2].abs()))

    def loss(outputs: Any, targets: Any) -> Tensor:
        envelope = (outputs[1] - targets[1]).square().mean((1, 2))
        return F.cross_entropy(outputs[0], targets[0], reduction="none") + envelope

    objective = amc.Objective("accuracy", loss, lambda o, t: (o[0].argmax(1) == t[0]).float(), lambda o: o[0])
    result = compressed(net, samples, objective, tmp_path)
    assert result.summary["final"]["macs"] <= 0.6 * result.summary["original"]["macs"]
    session = onnxruntime.InferenceSession(str(tmp_path / "run" / "model.onnx"))
    assert [o.name for o in session.get_outputs()] == ["output_0", "output_1"]
    found = session.run(None, {"input": signals[:5].numpy()})
    assert [f.shape for f in found] == [(5, 3), (5, 1, 16)]


def test_several_inputs_by_keyword_and_a_dict_of_outputs(tmp_path: Path) -> None:
    """Words and an image; no logits are named, so nothing is distilled."""

    def forward(m: Any, words: Tensor, image: Tensor) -> dict[str, Tensor]:
        seen = m.conv(image).mean((2, 3))
        return {"level": m.out(F.relu(m.hidden(torch.cat([m.embed(words).mean(1), seen], 1))))}

    class Two(Net):
        def forward(self, words: Tensor, image: Tensor) -> Any:
            return forward(self, words, image)

    torch.manual_seed(0)
    net = Two(
        forward,
        embed=nn.Embedding(7, 6),
        conv=nn.Conv2d(1, 12, 3),
        hidden=nn.Linear(18, 20),
        out=nn.Linear(20, 1),
    )
    words, image = torch.randint(0, 7, (60, 4)), torch.randn(60, 1, 6, 6)
    level = words.float().mean(1, keepdim=True) / 7
    samples = Samples({"words": words, "image": image}, {"level": level})

    def loss(outputs: Any, targets: Any) -> Tensor:
        return (outputs["level"] - targets["level"]).square().mean(1)

    objective = amc.Objective("closeness", loss, lambda o, t: 1 / (1 + loss(o, t)))
    result = compressed(net, samples, objective, tmp_path)
    assert {s["name"] for s in result.summary["sites"]} == {"conv", "hidden", "embed.weight"}
    runner = Runner(tmp_path / "run" / "model.onnx")
    given = {"words": words[:3], "image": image[:3]}
    assert set(runner.structured(nested.feeds(given))) == {"level"}
    assert check_parity(result.model, given, runner).largest_difference < 1e-4


# Objectives


def test_objectives_by_name(tmp_path: Path) -> None:
    assert load_objective("classification") is CLASSIFICATION
    with pytest.raises(ConfigError, match=r"unknown objective .clasification.\. Did you mean .classification."):
        load_objective("clasification")
    (tmp_path / "own.py").write_text(
        "import amc\n"
        "def make():\n    return amc.Objective('gain', lambda o, t: o.sum(1), lambda o, t: o[:, 0])\n"
        "def word():\n    return 'gain'\n"
        "def fails():\n    return 1 / 0\n"
    )
    assert load_objective(f"{tmp_path / 'own.py'}:make").name == "gain"
    with pytest.raises(ConfigError, match=r"gave a str, but must give an amc\.Objective"):
        load_objective(f"{tmp_path / 'own.py'}:word")
    with pytest.raises(ConfigError, match="fails: ZeroDivisionError"):
        load_objective(f"{tmp_path / 'own.py'}:fails")
    assert main(["inspect", "--objective", "zzz"]) == 2


@pytest.mark.parametrize(
    ("objective", "outputs", "error", "told"),
    [
        (amc.Objective("x", lambda o, t: F.cross_entropy(o, t), lambda o, t: t), torch.zeros(4, 3), DataError,
         r"losses have shape \[\], not one finite number per sample \(\[4\]\)"),
        (amc.Objective("x", lambda o, t: o["a"][:, 0], lambda o, t: o["b"]), {"a": torch.zeros(4, 3)}, DataError,
         r"outputs \(dict of \[4, 3\]\): 'b'"),
        (amc.Objective("x", lambda o, t: o, lambda o, t: o, lambda o: o["b"]), {"a": torch.zeros(4, 3)}, ModelError,
         "has no logits for x: 'b'"),
        (CLASSIFICATION, (torch.zeros(4, 3), torch.full((4,), torch.nan)), ModelError, "NaN or infinity"),
        (CLASSIFICATION, (torch.zeros(4, 3),), ModelError, "returns a tuple, but must return a tensor of logits"),
    ],
)  # fmt: skip
def test_objectives_that_do_not_fit(objective: Any, outputs: Any, error: type[AmcError], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        objective.check("net", outputs, torch.zeros(4, dtype=torch.long), None)
    assert "\n" not in str(caught.value)


# Structures


@pytest.mark.parametrize(
    "value", [torch.zeros(2), (torch.zeros(2), torch.ones(2)), {"b": torch.ones(2), "a": torch.zeros(2)}]
)
def test_structures_are_kept(value: nested.Nested) -> None:
    found = nested.joined([nested.mapped(lambda leaf: leaf + 1, value), value])
    assert nested.length(found) == 4
    assert type(found) is type(value)
    named = nested.names(found, "x")
    again = nested.restored(named, nested.leaves(found), "x")
    assert type(again) is type(value)
    assert nested.names(again, "x") == named
    assert all(map(torch.equal, nested.leaves(again), nested.leaves(found)))


@pytest.mark.parametrize("value", [3, "word", None, {}, [], {"a": 1}, {1: torch.zeros(1)}, [torch.zeros(1), "x"]])
def test_what_is_no_structure_of_tensors(value: Any) -> None:
    assert nested.nested(value) is None
