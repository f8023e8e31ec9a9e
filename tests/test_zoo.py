"""A dozen small networks of torchvision and timm, of as many kinds, through the sweep of `benchmarks/zoo.py`."""

import pytest
import torch

from benchmarks.zoo import ours, theirs
from benchmarks.zoo_table import SHARE

KINDS = {
    "concatenating": "torchvision:squeezenet1_0",
    "depthwise": "torchvision:mnasnet0_5",
    "shuffled": "torchvision:shufflenet_v2_x0_5",
    "residual, grouped, squeeze-and-excite": "timm:regnety_004",
    "squeeze-and-excite, hard swish": "timm:mobilenetv3_small_100",
    "aggregated": "timm:dla46x_c",
    "split": "timm:fasternet_t0",
    "cross-stage": "timm:cs3darknet_s",
    "multi-branch": "timm:skresnet18",
    "re-parameterised": "timm:repvgg_a0",
    "ConvNeXt": "timm:convnext_atto",
    "mixer": "timm:mixer_s32_224",
    "transformer with rotary embedding": "timm:eva02_tiny_patch14_224",
}


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_its_macs_go(kind: str) -> None:
    *_, found = ours(KINDS[kind], quick=True)
    assert found["step"] == "quick"
    assert found["share"] <= SHARE
    assert found["masked"] < 1e-5


def test_to_the_bundle() -> None:
    *_, found = ours("torchvision:mnasnet0_5")
    assert found["step"] == "done"
    assert found["parity"] < 1e-5


def test_beside_it_torch_pruning() -> None:
    torch.manual_seed(0)
    *_, found = theirs("torchvision:squeezenet1_0")
    assert found["step"] == "done"
    assert found["share"] == 0.313
