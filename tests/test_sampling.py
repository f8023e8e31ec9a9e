"""The order of samples in races, and the estimates of the mean over all samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.evaluation.sampling import Sampling

SIZES = st.lists(st.floats(0.01, 100), min_size=2, max_size=40)


def test_an_image_as_large_as_all_others_is_always_included():
    sampling = Sampling(torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    assert sampling.inclusion(2).tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3])
    assert sampling.inclusion(1).tolist() == pytest.approx([1 / 6, 3 / 6, 1 / 6, 1 / 6])


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_inclusion_probabilities_sum_to_the_count(sizes, data):
    sampling = Sampling(torch.tensor(sizes, dtype=torch.float64))
    count = data.draw(st.integers(1, len(sizes)))
    likely = sampling.inclusion(count)
    assert float(likely.sum()) == pytest.approx(count)
    assert float(likely.max()) <= 1 + 1e-9
    assert float(likely.min()) > 0
    assert sorted(sampling.order.tolist()) == list(range(len(sizes)))


@settings(max_examples=30, deadline=None)
@given(SIZES)
def test_all_images_give_the_exact_mean(sizes):
    sampling = Sampling(torch.tensor(sizes, dtype=torch.float64))
    values = torch.randn(2, len(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, error = sampling.mean(values[:, sampling.order])
    assert mean.tolist() == pytest.approx(values.mean(1).tolist())
    assert error.tolist() == pytest.approx([0, 0], abs=1e-6)


def difference_of_skewed_losses() -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of a policy, a few of them large, and differences of another policy's, which grow with the losses."""
    generator = torch.Generator().manual_seed(1)
    losses = torch.randn(2000, dtype=torch.float64, generator=generator).mul(2).exp()
    return losses, 0.1 * losses.sqrt() + losses.sqrt() * torch.randn(2000, dtype=torch.float64, generator=generator)


def test_estimates_are_unbiased_and_their_standard_errors_are_right():
    losses, difference = difference_of_skewed_losses()
    truth, found = float(difference.mean()), []
    for seed in range(300):
        sampling = Sampling(Sampling.by_losses(losses).sizes, seed)
        mean, error = sampling.mean(difference[sampling.order[:200]][None])
        found.append((float(mean) - truth, float(error)))
    off, error = torch.tensor(found, dtype=torch.float64).T
    assert abs(float(off.mean())) < 0.2 * float(off.std())
    assert float(error.mean()) == pytest.approx(float(off.std()), rel=0.15)


def test_informative_images_first_give_better_estimates():
    losses, difference = difference_of_skewed_losses()
    telling = Sampling.by_losses(losses)
    alike = Sampling(torch.ones_like(losses))
    errors = [float(s.mean(difference[s.order[:200]][None])[1]) for s in (telling, alike)]
    assert errors[0] < 0.7 * errors[1]


def test_equal_losses_give_equal_inclusion_probabilities():
    sampling = Sampling.by_losses(torch.full((10,), 0.3, dtype=torch.float64))
    assert sampling.inclusion(4).tolist() == pytest.approx([0.4] * 10)
