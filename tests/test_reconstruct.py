"""Reconstruction against a direct least-squares solve on the raw features."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc.reconstruction import least_squares as reconstruct
from amc.reconstruction.least_squares import least_squares, lost_variances
from amc.reconstruction.moments import Moments
from amc.reconstruction.rows import elements, rows_of


@pytest.fixture(autouse=True)
def no_ridge(monkeypatch):
    monkeypatch.setattr(reconstruct, "RIDGE", 0.0)


def moments_of(x: torch.Tensor) -> Moments:
    x = x.double()
    mean = x.mean(0)
    return Moments(mean, x.T @ x / len(x) - torch.outer(mean, mean), len(x))


def test_reconstruction_equals_least_squares_with_intercept():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator).double() @ torch.randn(12, 12, generator=generator).double() + 3
    w = torch.randn(5, 12, generator=generator).double()
    keep = torch.tensor([0, 2, 3, 7, 11])
    solved, delta = least_squares(w, moments_of(x), keep)
    with_ones = torch.cat([x[:, keep], torch.ones(500, 1).double()], 1)
    direct = np.linalg.lstsq(with_ones.numpy(), (x @ w.T).numpy(), rcond=None)[0]
    np.testing.assert_allclose(solved, direct[:-1].T, atol=1e-8)
    np.testing.assert_allclose(delta, direct[-1], atol=1e-8)


def test_reconstruction_equals_least_squares_without_intercept():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 10, generator=generator).double() + 1
    w = torch.randn(4, 10, generator=generator).double()
    keep = torch.tensor([1, 4, 5, 9])
    solved, _ = least_squares(w, moments_of(x), keep, centred=False)
    direct = np.linalg.lstsq(x[:, keep].numpy(), (x @ w.T).numpy(), rcond=None)[0]
    np.testing.assert_allclose(solved, direct.T, atol=1e-8)


def test_lost_variances_are_the_residuals_of_regressions():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(400, 7, generator=generator).double() @ torch.randn(7, 7, generator=generator).double() - 2
    w = torch.randn(3, 7, generator=generator).double()
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    lost = lost_variances(w, moments_of(x), order)
    for count in range(8):
        with_ones = torch.cat([x[:, order[:count]], torch.ones(400, 1).double()], 1).numpy()
        outputs = (x @ w.T).numpy()
        rest = outputs - with_ones @ np.linalg.lstsq(with_ones, outputs, rcond=None)[0]
        np.testing.assert_allclose(lost[:, count], rest.var(0), atol=1e-9)


def test_without_a_factor_inputs_count_as_uncorrelated():
    alike = Moments(torch.zeros(2).double(), torch.tensor([[4.0, 6.0], [6.0, 9.0]]).double(), 10)  # no ridge here
    dead = Moments(torch.zeros(2).double(), torch.zeros(2, 2).double(), 10)
    w, order = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([1, 0])
    # the diagonal, as one would have it: 1² · 4 + 2² · 9, of which the second input holds 36
    np.testing.assert_allclose(lost_variances(w, alike, order), [[40, 4, 0]])
    np.testing.assert_allclose(lost_variances(w, dead, order), [[0, 0, 0]])


def test_keeping_everything_changes_nothing(monkeypatch):
    monkeypatch.setattr(reconstruct, "RIDGE", 1e-3)
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
    w = torch.randn(3, 6, generator=torch.Generator().manual_seed(3)).double()
    solved, delta = least_squares(w, moments_of(x), torch.arange(6))
    torch.testing.assert_close(solved, w)
    torch.testing.assert_close(delta, torch.zeros(3).double())


def test_dead_inputs_do_no_harm(monkeypatch):
    monkeypatch.setattr(reconstruct, "RIDGE", 1e-3)
    x = torch.zeros(100, 4)
    w = torch.ones(2, 4).double()
    solved, delta = least_squares(w, moments_of(x), torch.tensor([0, 1]))
    assert torch.isfinite(solved).all()
    assert torch.isfinite(delta).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, (1, 5), padding=(0, 2), dilation=(1, 1)),
        nn.Conv2d(3, 4, 3, dilation=2, padding=2),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(3, 4, 3, stride=2, padding=1),
        nn.Linear(8, 4),
    ],
    ids=str,
)
def test_rows_are_what_the_layer_multiplies(layer: nn.Module):
    shape = (2, 3, 16) if isinstance(layer, nn.Conv1d) else (2, 3, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = rows_of(layer, x, 10_000, torch.Generator().manual_seed(0))
    outputs = layer(x)
    expected = (
        outputs.flatten(0, -2) if isinstance(layer, nn.Linear) else outputs.flatten(2).transpose(1, 2).flatten(0, 1)
    )
    found = F.linear(rows, layer.weight.flatten(1), layer.bias)
    # the positions come in random order
    torch.testing.assert_close(found.sort(0).values, expected.sort(0).values, atol=1e-5, rtol=1e-5)


def test_elements_are_all_taps_of_the_kept_channels():
    assert elements(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]
