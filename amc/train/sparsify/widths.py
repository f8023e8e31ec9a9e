"""Transformable architecture search (Dong & Yang 2019, Network Pruning via Transformable Architecture Search,
arXiv:1905.09717): the widths themselves are trained.

    p_k = softmax over k of α_k,    p̂ = softmax((log p + Gumbel noise) / τ) over the two candidates drawn by p
    L = Σ l(f(x, W, p̂), y) + λ cost,    cost = log E F   if E F > (1 + t) R,   −log E F   if E F < (1 − t) R,   else 0

Every site has candidate widths with logits α. E F is the expected share of the network's MACs under p, R the ``share``
that is wanted, t = 5 % its tolerance, and τ falls from 10 to 0.1, linearly. In the end a site keeps the first channels,
as many as its most probable width says.

A channel's score is the probability that the site is wider than its place. Deviations: a step mixes the two widths by
gates on the first channels, where the paper interpolates feature maps of different widths; there is no distillation,
since amc train has no original; α is trained on the same samples as the weights, by an optimiser of its own.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from amc.graph.channels import Axis
from amc.runtime.registry import about
from amc.train.hooks import Step
from amc.train.plan import Plan
from amc.train.sparsify.gates import GatedChannels, GateLaw, Gates, gated_channels
from amc.train.sparsify.preparation import DenseNetwork, Sparsifier

TOLERANCE, HOTTEST, COLDEST = 0.05, 10.0, 0.1


class TrainedWidths(GateLaw):
    """Gates that open the first channels of every site, up to a width that is trained."""

    def __init__(
        self, network: DenseNetwork, channels: GatedChannels, candidates: int, share: float, strength: float
    ) -> None:
        device = channels.weights.device
        shares = torch.arange(1, candidates + 1, device=device) / candidates
        self._masks = [(torch.arange(c, device=device) < torch.ceil(shares[:, None] * c)).float()
                       for c in channels.channels]  # fmt: skip
        self.alpha = torch.zeros(len(channels.channels), candidates, device=device).requires_grad_(True)
        """Logits ``[sites, candidates]``."""
        self.parameters = [self.alpha]
        self._share, self._strength = share, strength
        self._macs, self._out, self._in = _dependence(network, channels)

    def sample(self, step: Step) -> Tensor:
        """The mixture of two widths that are drawn for every site."""
        tau = HOTTEST + (COLDEST - HOTTEST) * step.number / max(1, step.steps - 1)
        logits = self.alpha.log_softmax(1)
        u = torch.rand(logits.shape).clamp(1e-6, 1 - 1e-6).to(logits.device)
        noisy = logits - (-u.log()).log()
        drawn = noisy.topk(min(2, logits.shape[1]), 1).indices  # without replacement, by p (Gumbel top-k)
        only = torch.full_like(noisy, -torch.inf).scatter(1, drawn, noisy.gather(1, drawn))
        return self._gates((only / tau).softmax(1))

    def _gates(self, chances: Tensor) -> Tensor:
        return torch.cat([own @ mask for own, mask in zip(chances, self._masks, strict=True)])

    def final(self) -> Tensor:
        """1 for the first channels, up to the most probable width."""
        best = torch.nn.functional.one_hot(self.alpha.argmax(1), self.alpha.shape[1]).float()
        return self._gates(best)

    def expected_share(self) -> Tensor:
        """E F: the expected share of the MACs, sites taken as independent."""
        chances = self.alpha.softmax(1)
        widths = torch.stack([(own @ mask).mean() for own, mask in zip(chances, self._masks, strict=True)])
        kept = torch.cat([widths.new_ones(1), widths])
        return (self._macs * (self._out @ kept) * (self._in @ kept)).sum() / self._macs.sum()

    def penalty(self, step: Step) -> Tensor:
        """λ log E F, with the sign that leads to the wanted share; 0 within its tolerance."""
        found = self.expected_share()
        over, under = found > (1 + TOLERANCE) * self._share, found < (1 - TOLERANCE) * self._share
        sign = over.float() - under.float()
        return self._strength * sign * found.log()

    def scores(self) -> Tensor:
        """The probability that a channel is within the width."""
        return self._gates(self.alpha.softmax(1))


def _dependence(network: DenseNetwork, channels: GatedChannels) -> tuple[Tensor, Tensor, Tensor]:
    """MACs of every layer ``[L]``, and how its output and input depend on the sites' shares ``[L, 1 + S]``."""
    layers = [layer for layer in network.graph.layers if layer.macs > 0]
    place = {site: 1 + number for number, site in enumerate(channels.sites)}

    def row(axis: Axis | None) -> Tensor:
        found = torch.zeros(1 + len(place))
        sites = [-1] if axis is None else axis.site.tolist()
        for site in sites:
            found[place.get(site, 0)] += 1 / len(sites)
        return found

    device = channels.weights.device
    macs = torch.tensor([float(layer.macs) for layer in layers], device=device)
    outputs, inputs = (torch.stack([row(axis) for axis in axes]).to(device)
                       for axes in ([x.output for x in layers], [x.input for x in layers]))  # fmt: skip
    return macs, outputs, inputs


def trained_widths(
    network: DenseNetwork,
    plan: Plan,
    *,
    share: Annotated[float, about("R, the share of the MACs that is wanted", gt=0, le=1)] = 0.5,
    candidates: Annotated[int, about("widths of every site, at equal distances", ge=2, le=64)] = 8,
    strength: Annotated[float, about("λ, the weight of the cost in the loss", gt=0, le=1000)] = 2.0,
    lr: Annotated[float, about("Adam's learning rate of α", gt=0, le=10)] = 0.02,
) -> Sparsifier:
    """Train how wide every site is."""
    channels = gated_channels(network)
    settings = f"trained-widths {share} {candidates} {strength} {lr}"
    return Gates(network, channels, TrainedWidths(network, channels, candidates, share, strength), lr, settings)
