"""Gradients of narrow strided 1x1 convolutions, which oneDNN computes wrongly or while it corrupts memory."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from amc.runtime.onednn import SafeGradients


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1, stride=2), nn.Flatten())


def test_outputs_and_gradients_are_those_of_the_network():
    torch.manual_seed(0)
    model, x = network(), torch.randn(32, 1, 9, 8)
    exact = copy.deepcopy(model).double()
    exact(x.double()).pow(2).sum().backward()
    model.to(memory_format=torch.channels_last)
    with SafeGradients(model).active():
        outputs = model(x.contiguous(memory_format=torch.channels_last))
    outputs.pow(2).sum().backward()
    assert torch.allclose(outputs.double(), exact(x.double()), atol=1e-4)
    for ours, wanted in zip(model.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), wanted.grad, rtol=1e-3, atol=1e-3)


def test_the_network_is_as_before_after_an_error():
    model = network()
    x = torch.randn(1, 1, 8, 8)
    before = model(x)
    with pytest.raises(RuntimeError, match="3 channels"), SafeGradients(model).active():
        model(torch.zeros(1, 3, 8, 8))
    assert model[2].stride == (2, 2)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(32, 8, 1, 2), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1, 2, padding=1)],
    ids=["wide", "3x3", "without stride", "padded"],
)
def test_other_layers_stay(layer):
    stride = layer.stride
    with SafeGradients(layer).active():
        assert layer.stride == stride


def test_a_layer_called_by_keyword():
    layer = nn.Conv2d(4, 8, 1, 2)
    x = torch.randn(1, 4, 8, 8)
    with SafeGradients(layer).active():
        found = layer(input=x)
    assert torch.allclose(found, layer(x), atol=1e-6)


TRAINS = """
import torch
from torch import nn
from amc.config import DataConfig
from amc.task import load_data, make_task
from amc.train import Plan, train
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1, 2), nn.ReLU(),
                      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
task = make_task("narrow", model, load_data(DataConfig(calibration=64, search=64)), torch.device("cpu"))
train(model, task, Plan(steps=60, lr=0.01, batch_size=128, weight_decay=0.0, distillation=0.0, temperature=1.0, seed=0,
                        precision="channels_last"))
print("trained", len([torch.randn(100) for _ in range(1000)]))
"""


def test_a_narrow_network_is_trained_to_the_end():
    """Without the detour this process crashed on AVX2 with one thread, and did not end with two."""
    done = subprocess.run([sys.executable, "-c", TRAINS], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "trained 1000\n"), done.stderr
