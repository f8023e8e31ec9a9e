"""Policies as plain JSON, the fingerprint that binds them, and the widths that are legal."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import built, random_kept
from torch import nn

from amc.errors import PolicyError
from amc.operators.branches import RemovedBranch
from amc.operators.channels import ChannelSetting, legal_widths
from amc.operators.policy import Policy, fingerprint, make_policy
from amc.task import nested


@st.composite
def settings_of_sites(draw: st.DrawFn) -> ChannelSetting | RemovedBranch:
    of = draw(st.integers(1, 40))
    kept = draw(st.sets(st.integers(0, of - 1)))
    return ChannelSetting(len(kept), of, tuple(sorted(kept))) if kept else RemovedBranch(0, of, ())


policies = st.builds(Policy, st.text(), st.dictionaries(st.text(), settings_of_sites(), min_size=1))


@given(policies)
def test_json_round_trip(policy: Policy) -> None:
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def good() -> dict[str, Any]:
    sites = {"conv1": {"kind": "channels", "width": 2, "of": 4, "kept": [0, 3]}}
    return {"format": "amc-policy", "version": 2, "fingerprint": "abc", "sites": sites}


def test_saved_as_readable_json_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "policy.json"
    policy = Policy("abc", {"conv1": ChannelSetting(2, 4, (0, 3))})
    policy.save(path)
    assert json.loads(path.read_text()) == good()
    assert Policy.load(path) == policy


def test_version_1_is_read_and_version_2_written() -> None:
    sites = {
        "conv1": {"kind": "channels", "width": 2, "of": 4, "kept": [0, 3]},
        "conv2": {"kind": "channels", "width": 0, "of": 8, "kept": []},
    }
    policy = Policy.from_json({**good(), "version": 1, "sites": sites})
    assert policy.settings == {"conv1": ChannelSetting(2, 4, (0, 3)), "conv2": RemovedBranch(0, 8, ())}
    assert policy.to_json()["sites"] == {"conv1": sites["conv1"], "conv2": {"kind": "branches", "of": 8}}
    assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "branches", "of": 8},
        {"kind": "channels", "width": False, "of": 8, "kept": []},
        {"kind": "channels", "width": 0, "of": 8, "kept": [1]},
        {"kind": "channels", "width": 0, "kept": []},
    ],
    ids=str,
)
def test_what_version_1_did_not_have_is_refused_in_it(entry: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="site 'conv2'"):
        Policy.from_json({**good(), "version": 1, "sites": {"conv2": entry}})


@pytest.mark.parametrize("of", [None, 0, -1, True, 4.0, "4", [4]])
def test_a_removed_branch_says_how_many_channels_there_were(of: Any) -> None:
    with pytest.raises(PolicyError, match="site 'conv1' needs a whole number of at least 1 for of"):
        Policy.from_json({**good(), "sites": {"conv1": {"kind": "branches", "of": of}}})


def test_an_unknown_kind_is_refused_in_one_line() -> None:
    value = good()
    value["sites"]["conv1"]["kind"] = "chanels"
    with pytest.raises(PolicyError, match=r"site 'conv1': unknown kind of compression 'chanels'. Did you mean"):
        Policy.from_json(value)


SITE_FAULTS: list[dict[str, Any]] = [
    {"kind": "bits"},
    {"kind": 3},
    {"kind": ["channels"]},
    {"width": 0},
    {"width": 0, "kept": []},
    {"width": -1, "kept": []},
    {"width": 3},
    {"width": True, "kept": [0]},
    {"width": 2.0},
    {"width": "2"},
    {"width": None},
    {"of": 3},
    {"of": 0},
    {"of": True},
    {"of": "4"},
    {"kept": [3, 0]},
    {"kept": [0, 0]},
    {"kept": [-1, 3]},
    {"kept": [0, 4]},
    {"kept": [0.0, 3.0]},
    {"kept": [False, 3]},
    {"kept": [0, None]},
    {"kept": [[0], 3]},
    {"kept": "03"},
    {"kept": None},
    {"kept": {"0": 3}},
    {"kept": [0, float("nan")]},
]


@pytest.mark.parametrize("fault", SITE_FAULTS, ids=str)
def test_a_faulty_setting_is_refused(fault: dict[str, Any]) -> None:
    value = good()
    value["sites"]["conv1"] |= fault
    with pytest.raises(PolicyError, match="site 'conv1'"):
        Policy.from_json(value)


@pytest.mark.parametrize("missing", ["kind", "width", "of", "kept"])
def test_an_incomplete_setting_is_refused(missing: str) -> None:
    value = good()
    del value["sites"]["conv1"][missing]
    with pytest.raises(PolicyError, match="site 'conv1'"):
        Policy.from_json(value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "policy"}, "format"),
        ({"version": 3}, "version 3"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"version": 1.0}, r"version 1\.0"),
        ({"sites": {}}, "its list of sites is empty"),
        ({"version": None}, "version None"),
        ({"fingerprint": 5}, "fingerprint"),
        ({"sites": []}, "sites"),
        ({"sites": {"a": 3}}, "site 'a'"),
        ({"sites": {"a\nb": 3}}, r"site 'a\\nb'"),
    ],
)
def test_a_faulty_envelope_is_refused_in_one_line(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyError, match=told) as caught:
        Policy.from_json(good() | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"amc-policy"', "{}", "NaN", "[" * 100_000, '{"format": "amc-policy"}']
)
def test_a_file_that_is_no_policy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"p\.json is not a policy: ") as caught:
        Policy.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    with pytest.raises(PolicyError, match="is not a policy"):
        Policy.load(tmp_path / "binary")
    with pytest.raises(PolicyError, match="No such file"):
        Policy.load(tmp_path / "absent")
    with pytest.raises(PolicyError, match="directory"):
        Policy.load(tmp_path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [("format",), ("version",), ("fingerprint",), ("sites",), ("sites", "conv1")]
PLACES += [("sites", "conv1", key) for key in ("kind", "width", "of", "kept")]


@settings(max_examples=150)
@given(st.sampled_from(PLACES), anything)
def test_any_value_anywhere_is_read_or_refused(place: tuple[str, ...], value: Any) -> None:
    """Whatever is accepted is sound: its channels exist, ascend and are as many as it says."""
    whole = good()
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        policy = Policy.from_json(whole)
    except PolicyError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for setting in policy.settings.values():
        assert isinstance(setting, ChannelSetting)
        assert setting.kept == tuple(sorted(set(setting.kept)))
        assert 1 <= len(setting.kept) == setting.width
        assert 0 <= setting.kept[0] <= setting.kept[-1] < setting.of


# Bound to its network


def test_policy_of_a_graph() -> None:
    model, _, graph, _ = built("resnet8")
    kept = random_kept(graph, np.random.default_rng(0))
    policy = make_policy(graph, fingerprint(model), [k[::-1] for k in kept])
    policy.check(model)
    assert [setting.size for setting in policy.settings.values()] == [len(k) for k in kept]
    assert all(map(np.array_equal, policy.kept(graph), kept))
    assert [s.kept for s in policy.settings.values()] == [tuple(k.tolist()) for k in kept]
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_a_policy_of_another_network_is_refused() -> None:
    model, _, graph, _ = built("resnet8")
    policy = make_policy(graph, fingerprint(model), [np.arange(2)] * len(graph.sites))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.bias[3] += 1e-6
    with pytest.raises(PolicyError, match=fingerprint(other)):
        policy.check(other)


@pytest.mark.parametrize("change", ["extra", "width"])
def test_other_sites_are_refused(change: str) -> None:
    _, _, graph, _ = built("resnet8")
    settings = dict(make_policy(graph, "", [np.arange(2)] * len(graph.sites)).settings)
    name = "other" if change == "extra" else graph.sites[0].name
    settings[name] = ChannelSetting(2, 3, (0, 1))
    with pytest.raises(PolicyError, match=f"site '{name}' with 3 channels is not in this network"):
        Policy("", settings).kept(graph)


def test_sites_that_an_older_policy_does_not_know_stay_whole() -> None:
    _, _, graph, _ = built("resnet8")
    settings = dict(make_policy(graph, "", [np.arange(2)] * len(graph.sites)).settings)
    del settings[graph.sites[0].name]
    assert [len(k) for k in Policy("", settings).kept(graph)] == [
        graph.sites[0].channels,
        *[2] * (len(graph.sites) - 1),
    ]


@pytest.mark.parametrize(
    "example",
    [torch.randn(1, 3, 8, 8), (torch.randn(1, 2), torch.zeros(1, dtype=torch.int64)), {"a": torch.ones(1, 4)}],
)
def test_a_policy_knows_what_its_network_takes(example: Any) -> None:
    _, _, graph, _ = built("resnet8")
    policy = make_policy(graph, "abc", [np.arange(2)] * len(graph.sites), example)
    again = Policy.from_json(json.loads(json.dumps(policy.to_json())))
    assert again == policy
    made = again.example()
    assert type(made) is type(example)
    assert [(t.shape, t.dtype) for t in nested.leaves(made)] == [(t.shape, t.dtype) for t in nested.leaves(example)]


@pytest.mark.parametrize(
    "inputs",
    [
        3,
        {},
        {"kind": "tensor"},
        {"kind": "tensor", "tensors": {}},
        {"kind": "x", "tensors": {"a": {"shape": [1], "dtype": "float32"}}},
        {"kind": "tensor", "tensors": {"a": {"shape": [-1], "dtype": "float32"}}},
        {"kind": "tensor", "tensors": {"a": {"shape": [1 << 40], "dtype": "float32"}}},
        {"kind": "tensor", "tensors": {"a": {"shape": [1], "dtype": "load"}}},
    ],
)
def test_inputs_that_are_none(inputs: Any) -> None:
    with pytest.raises(PolicyError, match="its inputs are invalid"):
        Policy.from_json({**good(), "inputs": inputs})


def test_another_example_input_is_refused() -> None:
    model, example, graph, _ = built("resnet8")
    policy = make_policy(graph, fingerprint(model), [np.arange(2)] * len(graph.sites), example)
    policy.check(model, example)
    for other in (example[..., 1:], example.double(), (example,), {"a": example}):
        with pytest.raises(PolicyError, match=r"a network that takes float32 \[3, 32, 32\], but the example"):
            policy.check(model, other)


def test_fingerprint_sees_every_change() -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    base = make()
    assert fingerprint(base) == fingerprint(make())
    assert len(fingerprint(base)) == 32
    changed = []
    for edit in (
        lambda m: m[0].weight.data[1, 2].mul_(1.001),
        lambda m: m[1].running_mean.add_(1e-3),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data.reshape(3, 4, 1, 1)),
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.append(nn.PReLU()),
    ):
        model = make()
        edit(model)
        changed.append(fingerprint(model))
    assert len({fingerprint(base), *changed}) == 7


def test_fingerprint_sees_names_but_not_counters_or_memory_layout() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = fingerprint(model)
    model[1].num_batches_tracked.add_(5)
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before
    renamed = nn.Sequential()
    renamed.add_module("0", model[0])
    renamed.add_module("norm", model[1])
    assert fingerprint(renamed) != before


# Legal widths


@given(channels=st.integers(1, 2048), min_keep=st.floats(0.001, 1.0), step=st.integers(0, 64))
def test_legal_widths(channels: int, min_keep: float, step: int) -> None:
    widths = legal_widths(channels, min_keep, step)
    used = step or (8 if channels >= 64 else 4 if channels >= 16 else 1)
    assert widths[-1] == channels
    assert list(widths) == sorted(set(widths))
    assert all(w % used == 0 and w >= min_keep * channels * (1 - 1e-9) for w in widths[:-1])
    legal = {w for w in range(1, channels) if w % used == 0 and w >= min_keep * channels}
    assert legal <= set(widths)


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        ((16, 0.2), (4, 8, 12, 16)),
        ((64, 0.5), (32, 40, 48, 56, 64)),
        ((5, 0.2), (1, 2, 3, 4, 5)),
        ((5, 0.21), (2, 3, 4, 5)),
        ((20, 0.2), (4, 8, 12, 16, 20)),
        ((18, 0.2), (4, 8, 12, 16, 18)),
        ((32, 1.0), (32,)),
        ((32, 0.2, 16), (16, 32)),
        ((10, 0.1, 1), tuple(range(1, 11))),
        ((100, 0.07, 1), tuple(range(7, 101))),
        ((1, 0.2), (1,)),
        ((4, 0.2, 8), (4,)),  # narrower than the step: left whole
    ],
)
def test_legal_widths_by_example(arguments: tuple, widths: tuple[int, ...]) -> None:
    assert legal_widths(*arguments) == widths
