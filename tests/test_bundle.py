"""Bundles: loaded with the network's class or without, old ones too, and refused when they are not what they say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import assert_same, bundled, output
from torch import nn

import amc
from amc.deploy.bundle import seal, verified
from amc.errors import AmcError, BundleError, PolicyError
from amc.latency import Runner

OLD = Path(__file__).parent / "data" / "bundle-1"
"""A bundle of version 1, made by ``python tests/data/make_bundle.py``."""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "bundle"))


def test_an_old_bundle_is_loaded_in_every_way() -> None:
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    program, pruned = amc.load(OLD), amc.load(OLD, bundled())
    assert not program.training
    assert not pruned.training
    assert pruned[0].weight.shape[0] < 8
    assert_same(output(program, images), output(pruned, images))
    assert_same(torch.from_numpy(Runner(OLD / "model.onnx")(images.numpy())), output(pruned, images))
    assert set(program.state_dict()) <= set(pruned.state_dict())


def test_a_policy_rebuilds_the_network_from_the_bundled() -> None:
    """With the original's weights, of those channels that the policy keeps; the original stays as it is."""
    net = bundled()
    for policy in (OLD / "policy.json", amc.Policy.load(OLD / "policy.json")):
        pruned: Any = amc.apply(net, policy)
        kept = list(amc.Policy.load(OLD / "policy.json").settings["0"].kept)
        assert torch.equal(pruned[0].weight, net[0].weight[kept])
    assert net[0].weight.shape[0] == 8
    assert amc.apply(net.train(), OLD / "policy.json").training
    assert isinstance(amc.apply(nn.DataParallel(bundled()), OLD / "policy.json"), nn.Sequential)


def rewritten(file: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """Change a file and the checksums with it, as somebody hostile would."""

    def write(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        change(values)
        (folder / file).write_text(json.dumps(values))
        if file != "manifest.json":
            seal(folder)

    return write


def flipped(file: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (flipped("model.safetensors"), r"model\.safetensors is damaged: its checksum"),
        (flipped("program.json"), r"program\.json is damaged: its checksum"),
        (lambda f: (f / "program.json").unlink(), r"cannot read .*program\.json: No such file"),
        (lambda f: (f / "manifest.json").unlink(), r"has no manifest\.json: it is not a bundle"),
        (lambda f: (f / "manifest.json").write_text("{"), r"cannot read .*manifest\.json"),
        (lambda f: (f / "manifest.json").write_text("[" * 100000), r"cannot read .*manifest\.json"),
        (rewritten("manifest.json", lambda m: m.update(version=2)), "version 2, but this amc reads version 1"),
        (rewritten("manifest.json", lambda m: m.update(format="x")), "not the manifest of a bundle"),
        (rewritten("manifest.json", lambda m: m["files"].pop("model.safetensors")), r"has no model\.safetensors"),
        (rewritten("manifest.json", lambda m: m["files"].pop("program.json")), r"amc\.load\(folder, model\)"),
        (rewritten("manifest.json", lambda m: m.update(files=3)), r"cannot read .*manifest\.json"),
        (rewritten("program.json", lambda p: p.update(version=2)), "program has version 2"),
        (rewritten("program.json", lambda p: p["tensors"].clear()), "damaged"),
        (shutil.rmtree, "there is no bundle"),
    ],
)  # fmt: skip
def test_what_is_no_bundle_any_more(copied: Path, break_it: Callable[[Path], None], told: str) -> None:
    break_it(copied)
    with pytest.raises(BundleError, match=told) as caught:
        amc.load(copied)
    assert "\n" not in str(caught.value)


def test_a_policy_is_for_one_network_only(copied: Path) -> None:
    other = bundled()
    with torch.no_grad():
        other[3].bias[0] += 1
    with pytest.raises(PolicyError, match="the policy is for the network"):
        amc.load(copied, other)
    with pytest.raises(PolicyError, match="the policy is for the network"):
        amc.apply(nn.Linear(3, 3), copied / "policy.json")
    rewritten("policy.json", lambda p: p.update(version=3))(copied)
    with pytest.raises(PolicyError, match="version 3, but this amc reads versions 1 to 2"):
        amc.load(copied, bundled())
    rewritten("policy.json", lambda p: (p.update(version=1), p.pop("inputs")))(copied)
    with pytest.raises(PolicyError, match="pass an example input"):
        amc.load(copied, bundled())
    assert_same(output(amc.load(copied, bundled(), torch.zeros(1, 1, 8, 8)), torch.ones(1, 1, 8, 8)),
                output(amc.load(OLD), torch.ones(1, 1, 8, 8)))  # fmt: skip


def test_the_checksums_are_of_the_files(copied: Path) -> None:
    names = json.loads((copied / "manifest.json").read_text())["files"]
    verified(copied, *names)
    for name in names:
        flipped(name)(copied)
        with pytest.raises(AmcError, match="is damaged"):
            verified(copied, name)
