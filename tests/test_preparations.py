"""The preparations of the literature: each formula by hand, or against numerical integration."""

import math

import pytest
import torch
from test_sparsify import Bare, by_hand, chain, dense, task  # noqa: F401  (a fixture)
from torch import distributions, nn

from amc.graph import build_graph
from amc.train import DenseNetwork, Plan, Step, prepared
from amc.train.sparsify.bayesian import normal_kl
from amc.train.sparsify.continuous import Continuous
from amc.train.sparsify.gates import gated_channels
from amc.train.sparsify.half_norm import EPSILON, HalfNorm
from amc.train.sparsify.learning_compression import LearningCompression
from amc.train.sparsify.log_normal import LogNormal, log_normal_kl, moments
from amc.train.sparsify.log_uniform import capacity, log_uniform_kl
from amc.train.sparsify.selective_decay import SelectiveDecay
from amc.train.sparsify.weight_noise import WeightNoise
from amc.train.sparsify.widths import TrainedWidths

PLAN = Plan(steps=10, lr=0.5, batch_size=64, weight_decay=5e-4, distillation=0.0, temperature=4.0, seed=3)


def test_half_norm_by_hand():
    """Channel 0 has the weights 1, 2 and 2: r = 3 / √3. Channel 1 is 0, costs nothing and has no gradient."""
    model = chain()
    hook = HalfNorm(by_hand(model), 0.1)
    penalty, r = hook.penalty(Step(model, 0, 1, 1)), 3**0.5
    assert penalty.item() == pytest.approx(0.1 * 3 * ((r + EPSILON) ** 0.5 - EPSILON**0.5))
    penalty.backward()
    slope = 0.1 * 3 * 0.5 * (r + EPSILON) ** -0.5 / (3 * r)  # r = √(Σ w² / 3), so dr/dw = w / (3 r)
    assert torch.allclose(model[0].weight.grad, slope * model[0].weight.detach())
    assert torch.allclose(model[1].weight.grad, slope * model[1].weight.detach())


def test_selective_decay_by_hand():
    """The second of two channels decays, by 1 / (1 + lr a μ); after half of the steps a is 10, between 1 and 100."""
    model = chain()
    model[0].weight.data[1] = 0.5
    hook = SelectiveDecay(by_hand(model), PLAN, 0.5, 0.1, 1.0, 100.0)
    step = Step(model, 5, 10, 10)
    factor = 1 / (1 + 0.5 * PLAN.rate(5, 10) * 10 * 0.1)
    assert hook.factor(step) == pytest.approx(factor)
    hook.after_step(step)
    assert model[0].weight.tolist() == [[1.0, 2.0], pytest.approx([0.5 * factor] * 2)]
    assert model[1].weight.tolist() == [[2.0, 0.0]]


def test_learning_compression_by_hand():
    """θ keeps the larger channel; the penalty is μ/2 times the squares of the other's weights and of later changes."""
    model = chain()
    model[0].weight.data[1] = 0.5
    hook = LearningCompression(by_hand(model), 0.5, 2, 0.1, 3.0, 0.0)
    step = Step(model, 0, 4, 4)
    assert hook.penalty(step) is None
    hook.compress(model)
    assert hook.compressed["0.weight"].tolist() == [[1.0, 2.0], [0.0, 0.0]]
    model[1].weight.data[0, 0] = 3.0
    assert hook.penalty(step).item() == pytest.approx(0.1 / 2 * (2 * 0.25 + 1.0))
    hook.compress(model)
    assert hook.penalty(step).item() == pytest.approx(0.3 / 2 * (2 * 0.25))
    hook.finish(model)
    assert model[0].weight.tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_compression_steps_are_where_they_should_be():
    model = chain()
    hook = LearningCompression(by_hand(model), 0.5, 3, 0.1, 1.0, 0.4)
    rounds = []
    for number in range(10):
        hook.after_step(Step(model, number, 10, 10))
        rounds.append(hook.round)
    assert rounds == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("log_alpha", [-6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 4.0, 7.0])
def test_the_kl_from_a_log_uniform_prior_is_the_integral(log_alpha):
    """KL = −½ log α + E log|ε| + C for ε ~ N(1, α), and C makes it 0 for α → ∞: C = (γ + log 2) / 2."""
    deviation = math.exp(log_alpha / 2)
    x = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    mean_log = torch.trapezoid(density * (1 + deviation * x).abs().clamp(min=1e-12).log(), x)
    exact = -log_alpha / 2 + mean_log.item() + (0.5772156649 + math.log(2)) / 2
    assert log_uniform_kl(torch.tensor(log_alpha)).item() == pytest.approx(exact, abs=0.012)


@pytest.mark.parametrize(("mu", "sigma"), [(-0.05, 0.02), (-1.0, 0.5), (-3.0, 2.0), (0.5, 1.0), (-15.0, 8.0)])
def test_the_truncated_log_normals_kl_and_moments_are_the_integrals(mu, sigma):
    low, high = max(-20.0, mu - 12 * sigma), 0.0
    x = torch.linspace(low, high, 400_001, dtype=torch.float64)  # log z
    weight = torch.exp(-((x - mu) / sigma).square() / 2)
    q = weight / torch.trapezoid(weight, x)
    kl = torch.trapezoid(q * ((q + 1e-300).log() + math.log(20)), x)
    given = torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64).log()
    assert log_normal_kl(*given).item() == pytest.approx(kl.item(), rel=1e-4, abs=1e-5)
    mean = torch.trapezoid(q * x.exp(), x)
    variance = torch.trapezoid(q * (x.exp() - mean).square(), x)
    found, ratio = moments(*given)
    assert found.item() == pytest.approx(mean.item(), rel=1e-4)
    assert ratio.item() == pytest.approx((mean / variance.sqrt()).item(), rel=1e-3)


def test_log_normal_noise_has_the_moments_that_it_says(task):  # noqa: F811
    law = LogNormal(gated_channels(dense(task)), 1.0, 0.0)
    with torch.no_grad():
        law.mu.copy_(torch.linspace(-3, 0.2, 24))
        law.log_sigma.copy_(torch.linspace(-2, 1, 24))
    torch.manual_seed(0)
    drawn = torch.stack([law.sample(None).detach() for _ in range(3000)])
    mean, ratio = moments(law.mu.detach(), law.log_sigma.detach())
    assert torch.allclose(drawn.mean(0).double(), mean, rtol=0.1)
    assert torch.allclose((drawn.mean(0) / drawn.std(0)).double(), ratio, rtol=0.1)
    assert bool(((drawn > 0) & (drawn <= 1)).all())


def test_the_gaussian_kl_is_torchs():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(50), torch.randn(50)
    own = distributions.Normal(mean, (log_variance / 2).exp())
    wanted = distributions.kl_divergence(own, distributions.Normal(torch.zeros(50), torch.ones(50)))
    assert torch.allclose(normal_kl(mean, log_variance), wanted, atol=1e-5)


def test_noise_on_weights_leaves_no_trace_and_has_gradients():
    """dL/dσ = g ε and dL/dθ = g, where w = θ + σ ε and g = dL/dw."""
    model = chain()
    before = model[0].weight
    noise = WeightNoise(build_graph(model, torch.ones(1, 2)), model, -2.0, 0.1)
    torch.manual_seed(1)
    noise.put()
    noisy = model[0].weight.detach().clone()
    model(torch.tensor([[1.0, 3.0]])).sum().backward()
    gradient = torch.outer(torch.tensor(model[1].weight.detach()[0].tolist()), torch.tensor([1.0, 3.0]))
    assert torch.allclose(before.grad, gradient)
    epsilon = (noisy - before.detach()) / math.exp(-1)
    slope = gradient * epsilon * math.exp(-1) / 2  # dσ/d log σ² = σ / 2
    assert torch.allclose(noise.log_variances["0.weight"].grad, slope, atol=1e-5)
    noise.take()
    assert model[0].weight is before
    assert list(model.state_dict()) == ["0.weight", "1.weight"]


def test_what_noise_tells():
    """A signal-to-noise ratio 1/α of 3 tells ½ log 4 nats."""
    assert capacity(torch.tensor(3.0).reciprocal().log()).item() == pytest.approx(0.5 * math.log(4))


def test_continuous_gates_by_hand(task):  # noqa: F811
    channels = gated_channels(dense(task))
    law = Continuous(channels, 2.0, 0.5, 100.0)
    with torch.no_grad():
        law.s[0] = -0.1
    half = Step(nn.Identity(), 5, 11, 11)  # β = 100 ** (5 / 10) = 10
    m = torch.sigmoid(torch.tensor([-1.0, *[5.0] * 23]))
    assert torch.allclose(law.sample(half), m)
    assert law.penalty(half).item() == pytest.approx(2 * m.mean().item())
    assert law.final().tolist() == [0.0, *[1.0] * 23]


def test_expected_costs_of_widths_by_hand():
    """Two layers: 8 × 4 and 4 × 2 weights, so 32 + 8 MACs, all in proportion to the one site's width."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).eval()

    class Task(Bare):
        example = torch.ones(1, 8)

        def __init__(self, model):
            self.model, self.device = model, torch.device("cpu")

    network = DenseNetwork(Task(model), build_graph(model, torch.ones(1, 8)))
    law = TrainedWidths(network, gated_channels(network), 4, 0.5, 3.0)
    assert law.expected_share().item() == pytest.approx(0.625)  # (1 + 2 + 3 + 4) / 4 of 4 channels
    assert law.penalty(Step(model, 0, 2, 2)).item() == pytest.approx(3 * math.log(0.625))
    with torch.no_grad():
        law.alpha.copy_(torch.tensor([[0.0, 40.0, 0.0, 0.0]]))
    assert law.expected_share().item() == pytest.approx(0.5)
    assert law.penalty(Step(model, 0, 2, 2)).item() == 0
    assert law.final().tolist() == [1.0, 1.0, 0.0, 0.0]
    with torch.no_grad():
        law.alpha.copy_(torch.tensor([[40.0, 0.0, 0.0, 0.0]]))
    assert law.penalty(Step(model, 0, 2, 2)).item() == pytest.approx(-3 * math.log(0.25))


def test_drawn_widths_follow_their_probabilities():
    """Two of three candidates are drawn without replacement: the first of them by p."""
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 2)).eval()
    network = DenseNetwork(Bare(model), build_graph(model, torch.ones(1, 8)))
    network.task.example = torch.ones(1, 8)
    law = TrainedWidths(network, gated_channels(network), 3, 0.5, 1.0)
    with torch.no_grad():
        law.alpha.copy_(torch.tensor([[0.2, 0.5, 0.3]]).log())
    torch.manual_seed(0)
    cold = Step(model, 10**6, 10**6 + 1, 1)  # at τ = 0.1 the first drawn has nearly all of the weight
    widths = torch.stack([law.sample(cold).detach().sum().round() for _ in range(3000)])
    found = [(widths == width).float().mean().item() for width in (1, 2, 3)]
    assert found == pytest.approx([0.2, 0.5, 0.3], abs=0.06)


def test_every_preparation_ranks_what_it_removes_last(task):  # noqa: F811
    """Learning-compression leaves channels that are exactly 0; they have the lowest scores, 0."""
    network = dense(task)
    hook = prepared("learning-compression", {"share": 0.25}, network, PLAN)
    hook.compress(network.model)
    hook.finish(network.model)
    zeros = network.model[4].weight.abs().sum(0) == 0
    assert int(zeros.sum()) == 6
    assert bool((hook.scores(network.model)["1"][zeros] == 0).all())
