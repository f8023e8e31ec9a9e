"""Networks that are sparse from the start: densities, rules, and a density that holds in every step."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from amc.config import Config, DataConfig, FinetuneConfig, ModelConfig, TrainConfig
from amc.errors import ConfigError
from amc.pipeline.training import train_network
from amc.task import load_data, make_task
from amc.train import Hook, Plan, SparseTraining, sparse_rule, sparse_rules, train
from amc.train.checkpoint import save
from amc.train.sparse.density import allocate, counts
from amc.train.sparse.state import SparseState
from amc.train.trainer import Trainer

PLAN = Plan(steps=12, lr=0.05, batch_size=32, weight_decay=5e-4, distillation=0.0, temperature=4.0, seed=3)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    return make_task("small", model, load_data(DataConfig()), torch.device("cpu"))


def begun(task, name, density=0.2, densities="erdos-renyi-kernel", **options):
    own = replace(task, model=copy.deepcopy(task.model))
    rule = sparse_rule(name, {"changes": 4, "share": 0.4, **options})
    return own, SparseTraining(own.model, rule, density, densities, 3)


# --- densities ----------------------------------------------------------------------------------------------------

SHAPES = st.lists(
    st.lists(st.integers(1, 20), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
)  # fmt: skip


@given(SHAPES, st.floats(0.01, 1.0), st.sampled_from(["uniform", "erdos-renyi-kernel"]))
@settings(max_examples=80, deadline=None)
def test_counts_are_exact(shapes, density, kind):
    sizes = [math.prod(shape) for shape in shapes]
    total = round(density * sum(sizes))
    if total < len(sizes):
        with pytest.raises(ConfigError, match="give a higher one"):
            counts(kind, density, shapes)
        return
    found = counts(kind, density, shapes)
    assert sum(found) == total
    assert all(1 <= count <= size for count, size in zip(found, sizes, strict=True))


def test_erdos_renyi_densities_are_the_closed_form():
    """Where no layer is full, n_l = d Σ N · (Σ dims_l) / Σ (Σ dims): for kernels ε (n_in + n_out + w + h)."""
    shapes = [(64, 32, 3, 3), (128, 64, 3, 3), (100, 128)]
    sizes, dims = [math.prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    wanted = [0.05 * sum(sizes) * own / sum(dims) for own in dims]
    assert counts("erdos-renyi-kernel", 0.05, shapes) == pytest.approx(wanted, abs=1)


def test_full_layers_give_the_rest_to_the_others():
    """The kernels of 16 × 1 × 3 × 3 are full; of the other 500 weights less 144 each gets its share of ε."""
    shapes = [(16, 1, 3, 3), (16, 16, 3, 3), (64, 16, 3, 3)]
    total = round(0.1 * (144 + 2304 + 9216))
    found = counts("erdos-renyi-kernel", 0.1, shapes)
    assert found[0] == 144
    assert found[1:] == pytest.approx([(total - 144) * own / (38 + 86) for own in (38, 86)], abs=1)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 30)), min_size=1, max_size=6), st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_allocated_is_within_bounds(layers, data):
    shares, most = [share for share, _ in layers], [top for _, top in layers]
    total = data.draw(st.integers(0, sum(most)))
    found = allocate(total, shares, most, [0] * len(most))
    assert sum(found) == total
    assert all(0 <= count <= top for count, top in zip(found, most, strict=True))


# --- the density holds ----------------------------------------------------------------------------------------------


class Watch(Hook):
    """Checks a network after every step."""

    def __init__(self, hook, total):
        self.hook, self.total, self.seen = hook, total, []

    def after_step(self, step):
        masks = self.hook.masks
        assert sum(int(mask.sum()) for mask in masks.values()) == self.total
        for name, mask in masks.items():
            assert bool(mask.any())
            assert bool((step.model.get_parameter(name)[~mask] == 0).all())
        self.seen.append(torch.cat([mask.flatten() for mask in masks.values()]))


@given(
    st.sampled_from(list(sparse_rules())), st.floats(0.02, 0.9), st.sampled_from(["uniform", "erdos-renyi-kernel"]),
    st.floats(0, 0.9), st.integers(0, 12),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_the_density_holds_in_every_step(task, name, density, densities, share, changes):
    own, hook = begun(task, name, density, densities, share=share, changes=changes)
    total = round(density * (72 + 288 + 1280))
    watch = Watch(hook, total)
    model = train(own.model, own, PLAN, hooks=[hook, watch])
    assert sum(int((p != 0).sum()) for p in model.parameters() if p.ndim > 1) <= total
    assert not model[0].weight._backward_hooks


@pytest.mark.parametrize("name", sparse_rules())
def test_weights_change_places_and_learn(task, name):
    own, hook = begun(task, name)
    watch = Watch(hook, hook.weights)
    before = copy.deepcopy(own.model.state_dict())
    model = train(own.model, own, PLAN, hooks=[hook, watch])
    moved = [number for number, (a, b) in enumerate(zip(watch.seen, watch.seen[1:], strict=False), 1) if (a != b).any()]
    assert 3 <= len(moved) <= 4
    last = torch.cat([p.flatten() != 0 for n, p in model.named_parameters() if n in hook.masks])
    assert bool((watch.seen[-1] | ~last).all())
    assert not torch.equal(before["6.weight"], model[6].weight)


@pytest.mark.parametrize("name", sparse_rules())
def test_a_training_that_was_interrupted_goes_on(task, name, tmp_path):
    own, hook = begun(task, name)
    whole = train(own.model, own, PLAN, hooks=[hook])
    own, hook = begun(task, name)
    trainer = Trainer(own.model, own, PLAN, None, [hook])
    for step in range(7):
        trainer.step(step)
    save(tmp_path / "checkpoint.pt", 7, own.model, trainer.optimizer, PLAN, [hook])
    own, hook = begun(task, name)
    again = train(own.model, own, PLAN, None, tmp_path / "checkpoint.pt", hooks=[hook])
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


# --- the rules, by hand -----------------------------------------------------------------------------------------------


def state():
    """Two layers of six and four weights, of which four and two are there."""
    tensors = {
        "weights": {"a": [[5.0, -1.0, 0.0], [2.0, 0.0, 4.0]], "b": [[0.5, 3.0], [0.0, 0.0]]},
        "masks": {"a": [[1, 1, 0], [1, 0, 1]], "b": [[1, 1], [0, 0]]},
        "gradients": {"a": [[9.0, 9.0, -0.2], [9.0, 0.1, 9.0]], "b": [[9.0, 9.0], [0.3, -0.4]]},
        "momentum": {"a": [[1.0, 1.0, 0.2], [1.0, -0.3, 1.0]], "b": [[3.0, 3.0], [0.1, 0.2]]},
    }
    made = {kind: {name: torch.tensor(own) for name, own in values.items()} for kind, values in tensors.items()}
    made["masks"] = {name: own.bool() for name, own in made["masks"].items()}
    return SparseState(**made)


def changed(name, share):
    return {key: mask.int().tolist() for key, mask in sparse_rule(name, {}).change(state(), share).items()}


def test_rigl_by_hand():
    """Half of each layer goes: −1 and 2 of a, 0.5 of b. Gradients of missing weights are largest at −1, 2 and 0.5."""
    assert changed("rigl", 0.5) == {"a": [[1, 1, 0], [1, 0, 1]], "b": [[1, 1], [0, 0]]}
    smaller = state()
    for gradients in smaller.gradients.values():
        gradients[gradients == 9] = 0
    found = {key: mask.int().tolist() for key, mask in sparse_rule("rigl", {}).change(smaller, 0.5).items()}
    assert found == {"a": [[1, 0, 1], [0, 1, 1]], "b": [[0, 1], [0, 1]]}


def test_set_drops_the_smallest():
    torch.manual_seed(0)
    found = sparse_rule("set", {}).change(state(), 0.5)
    assert {key: int(mask.sum()) for key, mask in found.items()} == {"a": 4, "b": 2}
    assert found["a"][0, 0]
    assert found["a"][1, 2]
    assert found["b"][0, 1]


def test_dsr_moves_weights_between_layers():
    """Of all six weights the two smallest go, one of each layer; three and one stay, so growth is 3 : 1 of 2."""
    torch.manual_seed(0)
    found = sparse_rule("dsr", {}).change(state(), 0.34)
    assert {key: int(mask.sum()) for key, mask in found.items()} == {"a": 5, "b": 1}


def test_sparse_momentum_by_hand():
    """Two weights of a and one of b go. Mean momentum is 1 and 3, so a gets one and b two, where it is largest."""
    found = changed("sparse-momentum", 0.5)
    assert sum(sum(row) for row in found["a"]) == 3
    assert found["b"] == [[1, 1], [0, 1]]


def test_the_share_falls_as_half_of_a_cosine():
    rule = sparse_rule("rigl", {"share": 0.4, "until": 0.5})
    assert [rule.share_at(number, 100) for number in (0, 25, 50)] == pytest.approx([0.4, 0.2, 0.0])
    assert sparse_rule("set", {"share": 0.4}).share_at(99, 100) == 0.4


# --- amc train --------------------------------------------------------------------------------------------------------


def config(tmp_path, **settings):
    return Config(
        data=DataConfig(search=100, calibration=64),
        model=ModelConfig(weights="random"),
        finetune=FinetuneConfig(epochs=0.3, precision="float32"),
        train=TrainConfig(**settings),
        threads=1,
        out=str(tmp_path / "net.safetensors"),
    )


def test_amc_train_writes_a_sparse_network(tmp_path):
    found = load_file(train_network(config(tmp_path, sparse="rigl", density=0.05, sparse_options={"changes": 2})).path)
    kernels = [tensor for tensor in found.values() if tensor.ndim > 1]
    total = sum(tensor.numel() for tensor in kernels)
    assert 0.045 * total < sum(int((tensor != 0).sum()) for tensor in kernels) <= round(0.05 * total)


def test_early_weights_are_kept_on_the_way(tmp_path):
    own = config(tmp_path, keep_early=0.25)
    path = train_network(own.replace(finetune=own.finetune.replace(epochs=0.8))).path
    early, late = load_file(tmp_path / "net.early.safetensors"), load_file(path)
    assert early.keys() == late.keys()
    steps = int(late["bn1.num_batches_tracked"])
    assert int(early["bn1.num_batches_tracked"]) == round(0.25 * steps)
    assert not torch.equal(early["conv1.weight"], late["conv1.weight"])


@pytest.mark.parametrize(
    ("settings", "finetune", "told"),
    [
        ({"sparse": "rigle"}, {}, "unknown sparse rule 'rigle'. Did you mean 'rigl'"),
        ({"sparse": "rigl", "sparse_options": {"share": 2}}, {}, "below 1"),
        ({"sparse_options": {"share": 0.2}}, {}, "name one with --sparse"),
        ({"sparse": "rigl", "sparsify": "bn-l1"}, {}, "Leave one of the two out"),
        ({"sparse": "rigl"}, {"ema_decay": 0.9}, "Leave --ema-decay out"),
        ({"sparse": "rigl", "density": 1e-5}, {}, "give a higher one"),
        ({"density": 0.2}, {}, "name a rule with --sparse"),
        ({"sparsify": "hard-concrete", "keep_early": 0.1}, {}, "Leave --keep-early out"),
    ],
)
def test_what_cannot_be_sparse_is_told(tmp_path, settings, finetune, told):
    own = config(tmp_path, **settings)
    with pytest.raises(ConfigError, match=told):
        train_network(own.replace(finetune=own.finetune.replace(**finetune)))


def test_a_rule_that_loses_weights_is_told(task, tmp_path):
    (tmp_path / "own.py").write_text(
        "from amc.train import SparseRule\n"
        "def nothing(state, share): return {name: mask & False for name, mask in state.masks.items()}\n"
        "def mine(): return SparseRule(nothing, 0.3, 4, 1.0, False)\n"
    )
    own = replace(task, model=copy.deepcopy(task.model))
    hook = SparseTraining(own.model, sparse_rule(f"{tmp_path}/own.py:mine", {}), 0.2, "uniform", 0)
    with pytest.raises(ConfigError, match="it must grow what it drops"):
        train(own.model, own, PLAN, hooks=[hook])
