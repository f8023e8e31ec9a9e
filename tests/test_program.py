"""A network as a program: it computes the same without its class, and a hostile file runs nothing."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import EXAMPLE, Net, assert_same, block, built, dense, lively, output, pool, squeeze_excite
from torch import Tensor, nn
from torch.nn import functional as F

from amc.deploy.program import read_program, write_program
from amc.errors import BundleError, ExportError
from amc.task import nested


def again(model: nn.Module, example: nested.Nested) -> nn.Module:
    """Through JSON and back."""
    return read_program(json.loads(json.dumps(write_program(model, example))), model.state_dict()).eval()


def attention() -> Net:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    return Net(lambda m, x: m.fc(m.layer(x.flatten(2).transpose(1, 2)).mean(1)), layer=layer, fc=nn.Linear(8, 3))


def constants() -> Net:
    """A buffer that is not saved, a constant made in forward, sizes computed from the batch, and odd floats."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = pool(m.a(x)) * m.scale + torch.arange(4.0)
        y = y.reshape(x.shape[0] * 2, 2).reshape(x.shape[0], -1).masked_fill(y > 1e6, float("-inf"))
        return m.fc(torch.cat(y.chunk(2, 1), 1))

    net = Net(forward, a=block(3, 4), fc=nn.Linear(4, 5))
    net.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
    return net


@pytest.mark.parametrize("make", [dense, squeeze_excite, constants])
def test_a_program_computes_what_the_network_does(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = lively(make())
    program = again(model, EXAMPLE)
    for count in (1, 3):
        images = torch.randn(count, 3, 8, 8)
        assert_same(output(program, images), output(model, images))
    assert set(program.state_dict()) == set(model.state_dict())


def test_attention() -> None:
    model, x = attention().eval(), torch.randn(2, 8, 3, 3)
    assert_same(output(again(model, x[:1]), x), output(model, x))


def test_inputs_by_keyword_and_a_dict_of_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, first: Tensor, second: Tensor) -> dict[str, Any]:
            both = self.fc(first) + second
            return {"sum": both, "parts": (first * 2, [second])}

    model = Two()
    given = {"first": torch.randn(4, 3), "second": torch.randn(4, 2)}
    program = again(model, nested.mapped(lambda x: x[:1], given))
    found, wanted = program(**given), model(**given)
    assert list(found) == ["sum", "parts"]
    assert isinstance(found["parts"], tuple)
    assert torch.equal(found["sum"], wanted["sum"])
    assert torch.equal(found["parts"][1][0], given["second"])
    program = again(model, (torch.zeros(1, 3), torch.zeros(1, 2)))
    assert torch.equal(program(given["first"], given["second"])["sum"], wanted["sum"])


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_program_is_an_ordinary_module() -> None:
    """It deep-copies, trains with its BatchNorms, is traced, and can be exported again."""
    model, example, _, _ = built("resnet8-digits")
    program = again(model, example)
    other = copy.deepcopy(program)
    images, classes = torch.randn(8, 1, 8, 8), torch.arange(8)
    other.train()
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(other(images), classes)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    mean = "bn1.running_mean"
    assert not torch.equal(other.state_dict()[mean], program.state_dict()[mean])
    assert torch.equal(program.state_dict()[mean], model.state_dict()[mean])
    other.eval()
    assert_same(output(torch.jit.trace(other, images), images), output(other, images))
    assert_same(output(again(other, example), images), output(other, images))


class Odd:
    """Something that a network may return, and that nobody else knows."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda m, x: m.fc(x) if x.sum() > 0 else x, "cannot be exported as a program"),
        (lambda m, x: m.fc(x).reshape(len(x), 3), "it fixes its batch size: x.shape"),
        (lambda m, x: Odd(m.fc(x)), "cannot be exported as a program|it returns a Odd"),
    ],
)
def test_what_cannot_be_written_is_told(forward: Any, told: str) -> None:
    with pytest.raises(ExportError, match=told) as caught:
        write_program(Net(forward, fc=nn.Linear(3, 3)), torch.randn(1, 3))
    assert "\n" not in str(caught.value)


# Hostile files


def plain() -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = nn.Sequential(nn.Linear(3, 2), nn.GELU())
    return json.loads(json.dumps(write_program(model, torch.zeros(1, 3)))), model.state_dict()


CODE = "x'), open('sprung', 'w"


def first_step(change: Callable[[list], Any]) -> Callable[[dict], Any]:
    return lambda p: change(p["steps"][0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p.update(format="x"), "is not a program"),
        (lambda p: p.update(version=2), "version 2, but this amc reads version 1"),
        (first_step(lambda s: s.__setitem__(1, "aten.from_file.default")), "not allowed"),
        (first_step(lambda s: s.__setitem__(1, "aten.save.default")), "not allowed|does not have"),
        (first_step(lambda s: s.__setitem__(1, "os.system")), "not allowed"),
        (first_step(lambda s: s.__setitem__(1, "aten.__class__.mro")), "not allowed"),
        (first_step(lambda s: s.__setitem__(1, "aten._linalg_det.default")), "not allowed"),
        (first_step(lambda s: s.__setitem__(1, "inductor.accumulate_grad_.default")), "not allowed"),
        (first_step(lambda s: s.__setitem__(1, ["aten"])), "not allowed"),
        (first_step(lambda s: s[3].update({CODE: 1})), "not a plain word"),
        (first_step(lambda s: s[2].__setitem__(0, {"node": "absent"})), "damaged"),
        (first_step(lambda s: s[2].__setitem__(0, {"dtype": "load"})), "which no program needs"),
        (first_step(lambda s: s[2].__setitem__(0, {"python": "1"})), "damaged"),
        (first_step(lambda s: s[2].__setitem__(0, {})), "damaged"),
        (lambda p: p["inputs"].update(kind="dict", names={"input": CODE}), "not a plain word"),
        (lambda p: p["inputs"].update(names={"class": "input"}), "not a plain word"),
        (lambda p: p["tensors"].update(a=CODE), "not a plain word"),
        (lambda p: p["tensors"].update(a="absent"), "damaged"),
        (lambda p: p.update(output={"dict": {CODE: {"value": 1}}}), "not a plain word"),
        (lambda p: p.update(output={"node": "absent"}), "damaged"),
        (lambda p: p.update(output={"value": CODE}), "damaged"),
        (
            lambda p: p.update(constants={"c": {"dtype": "float32", "shape": [9], "data": "AAAA"}}),
            "does not have its shape",
        ),
        (lambda p: p.update(constants={"c": {"dtype": "float32", "shape": [1], "data": "!"}}), "damaged"),
        (lambda p: p.pop("steps"), "damaged"),
        (lambda p: p.update(steps=3), "damaged"),
    ],
)
def test_a_hostile_program_is_one_line_and_runs_nothing(
    change: Any, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, state = plain()
    change(program)
    state[CODE] = torch.zeros(1)
    with pytest.raises(BundleError, match=told) as caught:
        read_program(program, state)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_words_in_a_program_stay_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, state = plain()
    step = next(s for s in program["steps"] if s[1].startswith("aten.gelu"))
    step[3]["approximate"] = CODE
    with pytest.raises(BundleError, match="does not run on inputs of its shapes"):
        read_program(program, state)
    del program["inputs"]["tensors"]
    loaded = read_program(program, state)
    with pytest.raises(RuntimeError):
        loaded(torch.zeros(1, 3))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="is not a program"):
        read_program(pickle.dumps(3), state)


ONE = [{"node": "input"}]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (["aten.max_pool2d_with_indices_backward.default", ONE * 2 + [2, 2, 0, 1, False] + ONE, {}], "not allowed"),
        (["aten.lstm.data", [*ONE * 2, ONE * 2, [], False, 1, 0.0, False, False], {}], "not allowed"),
        (["aten.gru.data", [*ONE * 3, [], False, 1, 0.0, False, False], {}], "not allowed"),
        (["aten.segment_reduce.default", [*ONE, "sum"], {"unsafe": True}], "not allowed"),
        (["aten.set_.source_Tensor", ONE * 2, {}], "not allowed"),
        (["aten.resize_.default", [*ONE, [10**6]], {}], "not allowed"),
        (["aten.view.dtype", [*ONE, {"dtype": "int64"}], {}], "not allowed"),
        (["aten.to.prim_dtype", ONE, {"copy": True}], "not allowed"),  # reads an uninitialised dtype: SIGSEGV
        (["aten.to.prim_Device", ONE, {"copy": True}], "not allowed"),
        (["aten.to.prim_other", ONE, {"copy": True}], "not allowed"),
        (["aten.relu.out", ONE, {}], "not allowed"),
        (["aten.full.default", [[2**20, 2**20], 1], {}], "makes a tensor of 1e"),
        (["aten.repeat.default", [*ONE, [2**30, 1]], {}], "makes a tensor of|has repeats"),
        (["aten.max_pool2d.default", [*ONE, [2**40, 1]], {}], "has kernel_size 1.1e"),
        (["aten.cat.default", [ONE * 100000], {}], "a list of 100000"),
        (["aten.cat.default", [ONE, "x"], {}], "has a text"),
        (["aten.add.Tensor", ONE, {}], "lacks its argument"),
        (["aten.add.Tensor", ONE * 9, {}], "has 9 arguments"),
        (["mul", [["a", 10**10]], {}], "arithmetic takes numbers only"),
        (["pow", [10, 10**9], {}], "too large"),
        (["mul", ["a", 10**10], {}], "arithmetic takes numbers only"),
        (["aten.zeros.default", [[1]], {"dtype": {"dtype": "quint8"}}], "which no program needs"),
        (["aten.zeros.default", [[1]], {"device": {"device": "meta"}}], "for the CPU"),
        (["aten.to.dtype", [*ONE, 0], {}], "a number for its argument dtype"),
        (["aten.clone.default", ONE, {"memory_format": {"node": "n"}}], "a number for its argument memory_format"),
        (["aten.remainder.int", [1, 0], {}], "not allowed"),
        (["aten.reshape.default", [*ONE, [7, 7]], {}], "does not run on inputs of its shapes"),
        (["aten.add.Tensor", [*ONE, 10**30], {}], "has other 1e"),
    ],
)
def test_an_operator_is_called_only_with_what_a_forward_pass_needs(step: list, told: str) -> None:
    program, state = plain()
    program["steps"].append(["y", *step])
    program["output"] = {"tuple": [{"node": "y"}]}
    with pytest.raises(BundleError, match=told) as caught:
        read_program(program, state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["quint8", "qint32", "bits8", "float8_e5m2", "uint1"])
def test_a_constant_is_of_an_ordinary_type(dtype: str) -> None:
    program, state = plain()
    program["constants"] = {"c": {"dtype": dtype, "shape": [4], "data": "AAAA"}}
    with pytest.raises(BundleError, match="which no program needs"):
        read_program(program, state)


@pytest.mark.parametrize("shape", [[2**32, 2**32], [-1, -3], [3]])
def test_a_constant_has_the_shape_of_its_bytes(shape: list[int]) -> None:
    program, state = plain()
    program["constants"] = {"c": {"dtype": "uint8", "shape": shape, "data": ""}}
    with pytest.raises(BundleError, match=r"does not have its shape|damaged"):
        read_program(program, state)


def test_sizes_that_grow_without_end_are_stopped() -> None:
    program, state = plain()
    del program["inputs"]["tensors"]
    program["steps"].insert(0, ["n0", "aten.sym_size.int", [{"node": "input"}, 1], {}])
    for i in range(20):
        program["steps"].insert(i + 1, [f"n{i + 1}", "mul", [{"node": f"n{i}"}, {"node": f"n{i}"}], {}])
    first = next(s for s in program["steps"] if s[1] == "aten.linear.default")
    first[2][0] = {"node": "input"}
    loaded = read_program(program, state)
    with pytest.raises(OverflowError, match="more than 64 bits"):
        loaded(torch.zeros(1, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 8, 2, batch_first=True, bidirectional=True, proj_size=3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0].mean(1))


def test_an_lstm_is_called_with_weights_and_states_that_fit() -> None:
    """Its kernel does not look: it crashes, or reads what is none of its business."""
    model, x = Recurrent().eval(), torch.randn(2, 5, 4)
    assert_same(output(again(model, x[:1]), x), output(model, x))
    program = json.loads(json.dumps(write_program(model, x[:1])))
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l1_reverse", "lstm.bias_ih_l0", "lstm.weight_hr_l1"):
        state = dict(model.state_dict())
        state[name] = state[name][..., :1].contiguous()
        with pytest.raises(BundleError, match="the weights of a recurrent layer"):
            read_program(program, state)
    zeros = next(s for s in program["steps"] if s[1] == "aten.zeros.default")
    zeros[2][0][-1] = 800
    with pytest.raises(BundleError, match="of a recurrent layer"):
        read_program(program, model.state_dict())


@pytest.mark.parametrize(("kind", "operator"), [(nn.GRU, "gru"), (nn.RNN, "rnn_tanh")])
def test_recurrent_layers_are_called_with_weights_that_fit(kind: type[nn.RNNBase], operator: str) -> None:
    model, x = (
        Net(lambda m, x: m.rnn(x)[0], rnn=kind(4, 8, 2, bidirectional=True, batch_first=True)).eval(),
        torch.randn(1, 5, 4),
    )
    assert_same(output(again(model, x), x), output(model, x))
    program = json.loads(json.dumps(write_program(model, x)))
    state = dict(model.state_dict())
    state["rnn.weight_hh_l1_reverse"] = state["rnn.weight_hh_l1_reverse"][:1]
    with pytest.raises(BundleError, match="the weights of a recurrent layer"):
        read_program(program, state)
    step = next(s for s in program["steps"] if s[1] == f"aten.{operator}.input")
    step[2][2] = []
    with pytest.raises(BundleError, match="the weights of a recurrent layer"):
        read_program(program, model.state_dict())


def test_a_program_survives_pickling() -> None:
    model = constants().eval()
    program, images = again(model, EXAMPLE), torch.randn(2, 3, 8, 8)
    assert_same(output(pickle.loads(pickle.dumps(program)), images), output(model, images))  # noqa: S301
