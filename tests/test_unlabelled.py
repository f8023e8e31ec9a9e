"""Data without labels: how they are read and split, what is compared, and a run on them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import amc
from amc.cli import main
from amc.config import Config, DataConfig
from amc.errors import AmcError, DataError
from amc.evaluation.scorer import compares_logits
from amc.graph.build import build_graph
from amc.reconstruction.sensitivity import sensitivities
from amc.task import check_training, evaluate, load_data, make_task
from amc.task.inputs import splits_of_inputs
from amc.task.metrics import CLASSIFICATION, COSINE
from amc.task.splits import hold, split_members
from amc.task.unlabelled import OriginalTargets, OutputDistance
from amc.train import make_plan, train

PARTS = ("train", "calibration", "search", "test")
INPUTS = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


class Heads(nn.Module):
    """A map and a vector, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.map, self.vector = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        return {"map": self.map(x), "vector": self.vector(x.mean((2, 3)))}


def task(model, objective=CLASSIFICATION, inputs=INPUTS):
    return make_task("net", model, splits_of_inputs(inputs, DataConfig()), torch.device("cpu"), objective)


# --- reading ------------------------------------------------------------------------------------------------------


class Plain:
    """A data set of inputs only."""

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return INPUTS[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(INPUTS)


@pytest.mark.parametrize(
    "data",
    [INPUTS, INPUTS.double().numpy(), TensorDataset(INPUTS), DataLoader(TensorDataset(INPUTS), 7), Plain(),
     DataLoader(Plain(), 16), list(INPUTS), (x for x in INPUTS), DataLoader(Stream(), 32)],
    ids=["tensor", "array", "TensorDataset", "loader", "dataset", "loader of a dataset", "list", "generator", "stream"],
)  # fmt: skip
def test_inputs_of_every_kind_give_the_same_splits(data):
    splits = splits_of_inputs(data, DataConfig())
    wanted = split_members(200, [40, 40, 40], 0)
    for part, members in zip(("test", "search", "calibration", "train"), wanted, strict=True):
        split = getattr(splits, part)
        assert torch.equal(split.fetch(torch.arange(len(split)))[0], INPUTS[members])
    assert {part: splits.provenance[part]["count"] for part in PARTS} == dict(zip(PARTS, (80, 40, 40, 40), strict=True))
    assert not splits.labelled


@pytest.mark.parametrize("name", ["a.npy", "one.npz", "two.npz"])
def test_files_of_arrays(tmp_path, name):
    path, array = tmp_path / name, INPUTS.numpy()
    if name == "a.npy":
        np.save(path, array)
    else:
        np.savez(path, image=array, **({"mask": array[:, 0] > 0} if name == "two.npz" else {}))
    inputs, _ = load_data(DataConfig(inputs=str(path))).test.fetch(torch.arange(3))
    if name == "two.npz":
        assert (inputs["image"].dtype, inputs["mask"].dtype) == (torch.float32, torch.bool)
    else:
        assert inputs.shape == (3, 3, 8, 8)


def test_a_folder_of_images_without_class_folders(tmp_path):
    from PIL import Image

    (tmp_path / "more").mkdir()
    for number in range(20):
        place = tmp_path / "more" if number % 2 else tmp_path
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    splits = load_data(DataConfig(inputs=str(tmp_path), mean=(0.0,) * 3, std=(1.0,) * 3))
    seen = torch.cat([getattr(splits, part).fetch(torch.arange(4))[0][:, 0, 0, 0] for part in PARTS[1:]])
    assert len((255 * seen).round().unique()) == 12
    assert splits.train.fetch(torch.arange(8))[0].shape == (8, 3, 8, 8)


@pytest.mark.parametrize("text", ["samples = torch.ones(20, 3)", "def samples():\n    return [torch.ones(3)] * 20"])
def test_what_a_python_file_names(tmp_path, text):
    path = tmp_path / "own.py"
    path.write_text(f"import torch\n{text}\n")
    splits = load_data(DataConfig(inputs=f"{path}:samples"))
    assert torch.equal(splits.test.fetch(torch.arange(2))[0], torch.ones(2, 3))


def read_all(data):
    splits = splits_of_inputs(data, DataConfig())
    for part in PARTS:
        split = getattr(splits, part)
        split.fetch(torch.arange(len(split)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (INPUTS[:9], "9 samples"),
        ({"a": INPUTS, "b": INPUTS[:5]}, "different numbers"),
        (3, "inputs only"),
        ("text", "inputs only"),
        (nn.Linear(1, 1), "inputs only"),
        (["a"] * 20, "inputs only"),
        (np.array(["a"] * 20), "must hold numbers"),
        ([INPUTS[0]] * 15 + [INPUTS[0, :2]] * 15, "equal size"),
    ],
)
def test_what_is_no_input(data, told):
    with pytest.raises(DataError, match=told):
        read_all(data)


@pytest.mark.parametrize("kind", ["pickle", "header", "zip", "scalar", "other", "none", "bytes", "inside"])
def test_damaged_and_hostile_files(tmp_path, kind, capsys):
    path = tmp_path / ("x.npy" if kind in ("pickle", "header") else "x.txt" if kind == "other" else "x.npz")
    if kind == "pickle":
        np.save(path, np.array([{}] * 20, object), allow_pickle=True)
    elif kind == "header":
        np.save(path, np.zeros(4))
        path.write_bytes(path.read_bytes().replace(b"(4,)", b"(9999999999,)"))
    elif kind == "zip":
        path.write_bytes(b"PK\x03\x04")
    elif kind == "bytes":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", bytes(100))
    elif kind == "inside":
        np.save(tmp_path / "one.npy", np.zeros(4))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("y.npy", (tmp_path / "one.npy").read_bytes().replace(b"(4,)", b"(9999999999,)"))
    elif kind == "scalar":
        np.savez(path, a=np.zeros(20), b=1.0)
    elif kind == "other":
        path.write_text("x")
    code = main(["search", "--flops", "0.5", "--calibration", str(path), "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert "Traceback" not in error


# --- what is compared ---------------------------------------------------------------------------------------------


def test_a_classifier_is_compared_by_its_class():
    own = task(classifier())
    assert own.objective.name == "agreement with the original"
    assert evaluate(own.model, own, own.splits.test)[1] == 1.0
    flipped = classifier()
    with torch.no_grad():
        flipped[3].weight.neg_()
        flipped[3].bias.neg_()
    assert evaluate(flipped, own, own.splits.test)[1] == 0.0


def test_other_outputs_are_compared_by_the_variance_that_is_explained():
    own = task(Heads().eval())
    assert own.objective.name == "explained variance of outputs"
    assert evaluate(own.model, own, own.splits.test) == pytest.approx((0, 1), abs=1e-6)
    targets = own.splits.search.fetch(torch.arange(40))[1]
    mean = {key: value.mean(0).expand_as(value) for key, value in targets.items()}
    assert float(own.objective.loss(mean, targets).mean()) == pytest.approx(1, rel=1e-3)
    assert compares_logits(own, "logit_mse")


def test_embeddings_are_compared_by_their_angle():
    own = task(classifier(), COSINE)
    targets = own.splits.search.fetch(torch.arange(4))[1]
    assert torch.allclose(own.objective.metric(3 * targets, targets), torch.ones(4))
    assert torch.equal(own.objective.metric(-targets, targets), torch.zeros(4))


def test_the_projections_gradient_is_the_curvature_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(6, 4)
    distance, found = OutputDistance.of((wanted, 2 * wanted)), []
    for _ in range(400):
        outputs = [wanted.clone().requires_grad_(), (2 * wanted).requires_grad_()]
        found.append(torch.autograd.grad(distance.projection(tuple(outputs), generator), outputs)[0])
    squares = 0.5 * torch.stack(found).square().mean(0)
    error = torch.zeros_like(wanted)
    error[:, 0] = 1
    rise = distance.loss((wanted + error, 2 * wanted), (wanted, 2 * wanted))
    assert torch.allclose(squares[:, 0], rise, rtol=1e-4)


def test_sensitivities_need_no_labels():
    own = task(Heads().eval())
    found = sensitivities(own, build_graph(own.model, own.example).layers, logit_mse=True)
    assert set(found) == {"stem", "map", "vector"}
    # all of the variance of an output layer is an error: half of the distance, since there are two outputs
    assert found["vector"].whole == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("model", [classifier, Heads])
def test_training_distils_from_the_original(model):
    own = task(model().eval())
    check_training(own)
    student = model().eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    plan = make_plan(Config().finetune.replace(batch_size=16, distillation=0.25, lr=0.01), own, 10, 0)
    before = evaluate(student, own, own.splits.test)[0]
    trained = train(student, own, plan, own.model)
    assert evaluate(trained, own, own.splits.test)[0] < before


def test_targets_that_fit_are_held_in_memory():
    own = task(classifier())
    held = hold(own.splits.search, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(held.fetch(torch.arange(5)), own.splits.search.fetch(torch.arange(5)),
                                                 strict=True))  # fmt: skip


class Counting(nn.Sequential):
    """Counts the samples that it has seen."""

    seen = 0

    def forward(self, x):
        type(self).seen += len(x)
        return super().forward(x)


@pytest.mark.parametrize(("room", "passes"), [(1 << 30, 1), (0, 3)])
def test_the_original_runs_once_for_samples_that_are_read_again(room, passes, monkeypatch):
    """As when the images of a search split do not fit into memory, and are read for every policy; outputs do."""
    monkeypatch.setattr("amc.task.unlabelled.HOLD_BYTES", room)
    split = splits_of_inputs(INPUTS, DataConfig()).search
    targets = OriginalTargets(split, Counting(*classifier()).eval(), torch.device("cpu"))
    Counting.seen = 0
    everything = torch.arange(len(split))
    inputs, first = targets.fetch(everything)
    again = torch.cat([targets.fetch(part)[1] for part in torch.split(everything, 7)])
    backwards = targets.fetch(everything.flip(0))[1].flip(0)
    assert Counting.seen == passes * len(split)
    for found in (first, again, backwards):
        torch.testing.assert_close(found, targets.original(inputs))


# --- runs ---------------------------------------------------------------------------------------------------------


SETTINGS = {"search": {"evaluations": 2, "refine": 1}, "finetune": {"epochs": 0.5, "candidates": 1, "batch_size": 16}}


@pytest.mark.slow
def test_a_run_on_inputs_alone(tmp_path: Path):
    result = amc.compress(Heads().eval(), INPUTS, budget=0.6, config=SETTINGS, out=tmp_path / "run")
    summary = result.summary
    assert summary["metric"] == "explained variance of outputs"
    assert summary["original"]["test"] == pytest.approx(1, abs=1e-6)
    assert 0 < summary["final"]["test"] < 1
    assert summary["data"]["splits"]["test"]["count"] == 40
    assert summary["trained_original"] is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--search-objective", "loss"], "--search-objective loss needs labels"),
        (["--label-smoothing", "0.1"], "--label-smoothing 0.1 needs labels"),
        (["--distillation", "0"], "--distillation 0 needs labels"),
        (["--data", "cifar10"], "takes the place of --data cifar10"),
    ],
)
def test_what_needs_labels_is_refused(options, told, tmp_path, capsys):
    np.save(tmp_path / "x.npy", INPUTS.numpy())
    command = ["search", "--flops", "0.5", "--calibration", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    assert main([*command, *options]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_training_from_scratch_needs_labels(tmp_path, capsys):
    assert main(["train", "--calibration", "x.npy", "--out", str(tmp_path / "w.safetensors")]) == 2
    assert "amc train needs labels" in capsys.readouterr().err


def test_gradients_of_a_distance_are_refused_before_anything_is_spent(tmp_path):
    config = {**SETTINGS, "search": {"criterion": "taylor"}}
    with pytest.raises(AmcError, match="needs the gradient of a loss by labels"):
        amc.compress(Heads().eval(), INPUTS, budget=0.6, config=config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_inputs_and_a_search_split_do_not_go_together():
    with pytest.raises(AmcError, match="without test"):
        amc.compress(classifier(), INPUTS, search=INPUTS, budget=0.5)
