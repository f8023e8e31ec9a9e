"""What is counted on one example: hand-made sums."""

import numpy as np
import pytest
import torch
from networks import EXAMPLE, Net, block, built
from torch import nn
from torch.nn import functional as F

from amc.graph.trace import Trace, trace


def peak(seen: Trace) -> int:
    return int((seen.live.astype(np.int64) @ seen.sizes).max())


def test_layers_in_the_order_they_run() -> None:
    model = Net(lambda m, x: m.first(m.last(x)), first=nn.Conv2d(4, 5, 3, stride=2), last=nn.Conv2d(3, 4, 1))
    seen = trace(model.eval(), EXAMPLE)
    assert [(c.name, c.input, c.output, c.calls) for c in seen.layers.values()] == [
        ("last", (3, 8, 8), (4, 8, 8), 1),
        ("first", (4, 8, 8), (5, 3, 3), 1),
    ]
    assert seen.macs == 8 * 8 * 4 * 3 + 3 * 3 * 5 * 4 * 9
    assert [list(t.shape) for t in seen.outputs] == [[1, 5, 3, 3]]


def test_a_module_that_runs_twice_is_counted_twice() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    seen = trace(Net(lambda m, x: m.c(m.c(x)), c=conv).eval(), EXAMPLE)
    assert seen.layers["c"].calls == 2
    assert seen.macs == 2 * 64 * 81


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2), 3 * 64 * 3),
        (lambda x: F.linear(x, torch.ones(5, 8)), 3 * 8 * 8 * 5),
        (lambda x: F.scaled_dot_product_attention(x, x, x), 3 * 8 * 8 * (8 + 8)),
        (lambda x: F.conv2d(x, torch.ones(4, 1, 3, 3)[:3], groups=3), 6 * 6 * 3 * 9),
        (lambda x: F.relu(x) * x, 0),
    ],
)
def test_functional_macs(function, macs: int) -> None:
    assert trace(Net(lambda m, x: function(x)), EXAMPLE).macs == macs


def test_memory_of_a_chain() -> None:
    """Input 3·64 and output 8·64 live together; the ReLU is done in place."""
    seen = trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval(), EXAMPLE)
    assert peak(seen) == (3 + 8) * 64


def test_memory_of_a_shortcut() -> None:
    """While the second convolution runs, its input, its output and the shortcut are alive: 3 × 8 channels."""
    model = Net(lambda m, x: (y := m.a(x)) + m.c(m.b(y)), a=block(3, 8), b=block(8, 8), c=block(8, 8))
    assert peak(trace(model.eval(), EXAMPLE)) == 24 * 64


def test_a_relu_whose_input_is_used_again_needs_memory() -> None:
    model = Net(lambda m, x: F.relu(y := m.a(x)) + y, a=nn.Conv2d(3, 8, 3, padding=1))
    assert peak(trace(model.eval(), EXAMPLE)) == 24 * 64


def test_an_early_output_is_kept_to_the_end() -> None:
    """While the last convolution runs: the early output (8), its input (8) and its output (8)."""
    model = Net(lambda m, x: (y := m.a(x), m.c(m.b(y))), a=block(3, 8), b=block(8, 8), c=block(8, 8))
    assert peak(trace(model.eval(), EXAMPLE)) == 24 * 64


def test_tracing_leaves_no_hooks_and_no_gradients() -> None:
    model, example, _, _ = built("resnet8")
    seen = trace(model, example)
    assert not any(m._forward_hooks for m in model.modules())
    assert not any(t.requires_grad for t in seen.outputs)
