"""How far a Gaussian is from the log-uniform prior (Molchanov, Ashukha & Vetrov 2017, arXiv:1701.05369, equation 14).

For q = N(θ, α θ²) and p(|w|) ∝ 1/|w|, which depends on α alone:

    −KL(q ‖ p) ≈ k₁ sigmoid(k₂ + k₃ log α) − ½ log(1 + 1/α) − k₁

with k₁ = 0.63576, k₂ = 1.87320 and k₃ = 1.48695, a fit to the integral; the last term makes it 0 for α → ∞.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

K1, K2, K3 = 0.63576, 1.87320, 1.48695
REMOVED = 3.0
"""log α from which on the papers set a weight to 0: its noise is 4.5 times its value."""


def log_uniform_kl(log_alpha: Tensor) -> Tensor:
    """KL(N(θ, α θ²) ‖ log-uniform) up to the constant that makes it 0 for α → ∞.

    >>> [round(x, 2) for x in log_uniform_kl(torch.tensor([-8.0, 0.0, 20.0])).tolist()]
    [4.64, 0.43, 0.0]
    """
    return 0.5 * F.softplus(-log_alpha) + K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha)


def capacity(log_alpha: Tensor) -> Tensor:
    """½ log(1 + 1/α): what a value with such noise tells, in nats (a Gaussian channel's capacity); at least 0."""
    return 0.5 * F.softplus(-log_alpha)
