"""What strangers bring: handled, or refused in one clear line."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Net, assert_same, output
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import amc
from amc.config import DataConfig
from amc.errors import DataError, ModelError
from amc.graph.build import build_graph
from amc.task import Task, check_training, make_task
from amc.task.datasets import splits_of
from amc.task.models import load_weights

IMAGES, CLASSES = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
SPLITS = splits_of(TensorDataset(IMAGES, CLASSES), TensorDataset(IMAGES, CLASSES), None, DataConfig())


def task_of(model: nn.Module) -> Task:
    return make_task("net", model, SPLITS, torch.device("cpu"))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def members() -> dict[str, nn.Module]:
    return dict(zip("abcde", plain(), strict=True))


# Handled


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda m: nn.DataParallel(nn.DataParallel(m)), lambda m: torch.compile(m, backend="eager")],
)
def test_wrappers_are_taken_off(wrap: Any) -> None:
    model = plain()
    assert task_of(wrap(model)).model is model


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(kind: torch.dtype) -> None:
    task = task_of(plain().to(kind))
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert build_graph(task.model, task.example).sites


def test_data_in_half_precision_become_single() -> None:
    halved = TensorDataset(IMAGES.half(), CLASSES)
    splits = splits_of(halved, halved, None, DataConfig())
    assert {getattr(splits, part).fetch(torch.arange(2))[0].dtype for part in ("train", "search")} == {torch.float32}


def test_training_mode_is_left() -> None:
    assert not any(module.training for module in task_of(plain().train()).model.modules())


def test_hooks_that_only_watch_are_taken_off() -> None:
    model, seen = plain(), []
    wanted = output(model, IMAGES)
    model[0].register_forward_hook(lambda module, inputs, result: seen.append(result))
    model[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model[2].register_full_backward_hook(lambda module, grads, more: seen.append(grads))
    task = task_of(model)
    seen.clear()
    assert_same(output(task.model, IMAGES), wanted)
    assert seen == []
    assert len(build_graph(task.model, task.example).sites) == 2


def test_hooks_that_compute_stay() -> None:
    model = plain()
    model[0].register_forward_hook(lambda module, inputs, result: result * 2)
    wanted = output(model, IMAGES)
    assert_same(output(task_of(model).model, IMAGES), wanted)


def test_weight_norm_stays() -> None:
    model = plain()
    nn.utils.parametrizations.weight_norm(model[2])
    wanted = output(model, IMAGES)
    assert_same(output(task_of(model).model, IMAGES), wanted)


def inference_tensors() -> nn.Module:
    with torch.inference_mode():
        return plain()


@pytest.mark.parametrize("make", [lambda: plain().to(memory_format=torch.channels_last), inference_tensors])
def test_tensors_become_plain_ones(make: Any) -> None:
    task = task_of(make())
    assert [s.name for s in build_graph(task.model, task.example).sites] == ["0", "2"]
    assert_same(output(task.model, IMAGES), output(plain(), IMAGES))


def test_in_place_layers_within_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 3))
    task = task_of(model)
    assert [s.name for s in build_graph(task.model, task.example).sites] == ["0"]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"module.module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"model.net.{k}": v for k, v in s.items()},
        lambda s: {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.tensor(3)},
        lambda s: {k: v.half() for k, v in s.items()},
        lambda s: {"model_state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": {f"module.{k}": v for k, v in s.items()}}},
    ],
)
def test_weights_with_what_training_put_around_them(wrapped: Any, tmp_path: Path) -> None:
    source, target = plain(), copy.deepcopy(plain())
    with torch.no_grad():
        target[0].weight.zero_()
    torch.save(wrapped(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, str(tmp_path / "w.pt"))
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=1e-3, atol=1e-3)


def test_a_prefix_that_hides_other_weights_is_told(tmp_path: Path) -> None:
    save_file({f"model.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"it lacks '0.bias' \(6 missing, 2 too many\)"):
        load_weights(plain(), str(tmp_path / "w.safetensors"))


# Refused


class Counter(nn.Module):
    """Does something else at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = plain(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)[:, : 3 + self.calls % 2 - 1]


def _counted(m: Any, x: Tensor) -> Tensor:
    m.seen += 1
    return m.b(x)


def _exchanged(m: Any, x: Tensor) -> Tensor:
    m.seen = m.seen + 1
    return m.b(x)


def with_seen(forward: Any) -> nn.Module:
    net = Net(forward, b=plain())
    net.register_buffer("seen", torch.zeros(1))
    return net


def _rewritten(m: Any, x: Tensor) -> Tensor:
    m.b[0].weight.data.mul_(2)  # autograd's version counter does not see it
    return m.b(x)


def exported() -> nn.Module:
    return torch.export.export(plain(), (IMAGES,)).module()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return plain()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Counter, r"returns \[\d+, 3\], then \[\d+, 2\] for the same inputs"),
        (lambda: Net(lambda m, x: m.b(F.dropout(x, 0.5, training=True)), b=plain()), "turn off its randomness"),
        (lambda: Net(lambda m, x: m.b(x.mul_(2)), b=plain()), r"changes its input in place.*x = x\.clone"),
        (lambda: nn.Sequential(nn.ReLU(inplace=True), *plain()), "changes its input in place"),
        (lambda: with_seen(_counted), "changes its tensor 'seen'"),
        (lambda: with_seen(_exchanged), "changes its tensor 'seen'"),
        (lambda: with_seen(_rewritten), "changes its tensor 'b.0.weight'"),
        (lambda: nn.Sequential(nn.LazyConv2d(6, 3)), "'0.weight' has no shape yet: run the network once"),
        (lambda: Net(torch.inference_mode()(lambda m, x: m.b(x)), b=plain()), r"uses torch\.inference_mode"),
        (lambda: Net(lambda m, x: m.b(x) * torch.nan, b=plain()), "NaN"),
        (exported, "has no evaluation mode"),
        (lambda: plain, "is a function, but must be a torch.nn.Module"),
        (on_meta, "'0.weight' is on the meta device, which has no values"),
        (lambda: torch.jit.trace(plain().eval(), IMAGES), "is a TorchScript module"),
        (lambda: Net(lambda m, x: m.b(x).squeeze(), b=plain()), r"returns \[3\] for one sample, but \[10, 3\] for 10"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_what_cannot_be_compressed_is_refused(make: Any, told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        task_of(make())
    assert "\n" not in str(caught.value)


# One training step is tried before the search


class Training(nn.Module):
    """Does something else in training mode."""

    def __init__(self, body: nn.Module, change) -> None:
        super().__init__()
        self.body, self.change = body, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.body(x)) if self.training else self.body(x)


def fails(x: Tensor) -> Tensor:
    raise KeyError("auxiliary")


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Rounded(torch.autograd.Function):
    """Without a derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.round()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: plain().requires_grad_(False), r"all parameters of the network are frozen.*requires_grad_\(True\)"),
        (
            lambda: Training(plain(), lambda y: (y, y[:, :2])),
            r"a tuple of \[8, 3\], \[8, 2\], which the loss does not accept",
        ),
        (lambda: Training(plain(), lambda y: {"out": y}), r"a dict of \[8, 3\], which the loss does not accept"),
        (lambda: Training(plain(), lambda y: y[:1]), r"in training mode the network returns \[1, 3\]"),
        (lambda: Training(plain(), fails), "fails in training mode: .*auxiliary"),
        (lambda: Training(plain(), torch.Tensor.detach), "has no gradient in training mode"),
        (lambda: Training(plain(), Rounded.apply), "cannot be trained"),
        (NoGradient, "has no gradient in training mode"),
    ],
)
def test_a_network_that_cannot_be_trained_is_told_before_the_search(make, told):
    with pytest.raises(ModelError, match=told) as error:
        check_training(task_of(make()))
    assert "--no-finetune" in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_of_the_training_split_are_not_the_networks_mistake():
    train = TensorDataset(IMAGES, torch.full((40,), 7))
    splits = splits_of(train, TensorDataset(IMAGES, CLASSES), TensorDataset(IMAGES, CLASSES), DataConfig())
    with pytest.raises(DataError):
        check_training(make_task("net", plain(), splits, torch.device("cpu")))


def test_trying_to_train_changes_nothing():
    model = nn.Sequential(plain()[0], nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Flatten(), nn.Linear(96, 3))
    task = task_of(model)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_training(task)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())
    assert not task.model.training


def test_a_run_that_cannot_train_leaves_no_folder(tmp_path):
    """A network that cannot be trained is refused before anything is spent, and no folder is left."""
    data = TensorDataset(IMAGES, CLASSES)
    config = amc.Config(threads=1, device="cpu", cache=None)
    frozen = plain().requires_grad_(False)
    with pytest.raises(ModelError, match="all parameters of the network are frozen"):
        amc.compress(frozen, data, data, amc.Budget(flops=0.7), config=config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
