"""Races: compare a policy with the incumbent on as few samples as are needed to see which of them is better.

Both are evaluated on the same samples in the same order (`amc.evaluation.sampling`). A race ends when the mean
difference of their losses is `CLEAR` standard errors from 0, or after the share `MOST` of the samples.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from amc.evaluation.networks import PolicyNetworks
from amc.evaluation.sampling import Sampling
from amc.evaluation.score import Race
from amc.evaluation.scorer import BLOCK, Scorer
from amc.evaluation.settings import EvaluationSettings
from amc.graph.surgery import shallow_copy
from amc.space.sites import Choice

CLEAR = 2.0
"""Standard errors of the mean paired difference at which a race is decided."""
LEAST = 2
"""Least number of blocks in a race, since the variance of a single block is too uncertain."""
MOST = 0.5
"""Largest share of the samples in a race. With half of them, the error in estimating the mean over all samples is about
the error of that mean as an estimate of the distribution's."""
_HELD = 4  # number of policies whose per-sample losses are kept


@dataclass(eq=False)
class Reading:
    """Loss and metric of a policy on the first ``count`` samples of the race's order."""

    samples: Tensor
    """``[2, N]``; uninitialised for samples that were not evaluated yet."""
    count: int
    network: nn.Module | None = None
    """The network with folded BatchNorms, for further samples; None once all samples were evaluated."""


class Racer:
    """Runs races. It keeps the per-sample losses of the last few policies, so that no incumbent is evaluated twice."""

    def __init__(self, networks: PolicyNetworks, scorer: Scorer, settings: EvaluationSettings) -> None:
        self._networks, self._scorer, self._settings = networks, scorer, settings
        self._readings: OrderedDict[Choice, Reading] = OrderedDict()

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        """Compare a policy with the ``incumbent``; the policy's losses are multiplied by ``handicap``."""
        sampling, other, total = self._sampling, self._reading(incumbent), len(self._scorer)
        least = min(LEAST * BLOCK, total)
        most = max(least, math.ceil(MOST * total))
        network = self._networks.network(choice, self._settings)
        with self._scorer.folded(network):
            own = Reading(torch.empty(2, total, dtype=torch.float64), 0, network)
            for count in [*range(least, most, BLOCK), most]:
                self._read_on(own, count)
                self._read_on(other, count)
                read = sampling.order[:count]
                mine, theirs = own.samples[:, read], other.samples[:, read]
                means, errors = sampling.mean(torch.cat([handicap * mine[:1] - theirs[:1], mine, theirs]))
                if abs(float(means[0])) > CLEAR * float(errors[0]):
                    break
            rejected = bool(means[0] > 0) and count < total
            if not rejected:
                self.remember(choice, own)
        loss, metric, incumbent_loss, incumbent_metric = means[1:].tolist()
        return Race(loss, metric, incumbent_loss, incumbent_metric, count / total, rejected)

    def remember(self, choice: Choice, reading: Reading) -> None:
        """Keep the per-sample losses of a possible incumbent, and a shallow copy of its network to continue with."""
        if reading.network is not None:
            reading.network = shallow_copy(reading.network)
        self._readings[choice] = reading
        if len(self._readings) > _HELD:
            self._readings.popitem(last=False)

    @cached_property
    def _sampling(self) -> Sampling:
        """The order of samples: those with a large loss of the original first.

        With the distance of logits, which is 0 for the original, the order is uniformly random.
        """
        if self._scorer.compares_logits:
            return Sampling(torch.ones(len(self._scorer), dtype=torch.float64))
        original = self._networks.plain(self._networks.full)
        return Sampling.by_losses(self._scorer.read(original, self._settings.half)[0])

    def _reading(self, incumbent: Choice) -> Reading:
        """The incumbent's reading so far."""
        if incumbent not in self._readings:
            network = self._networks.network(incumbent, self._settings)
            with self._scorer.folded(network):
                empty = torch.empty(2, len(self._scorer), dtype=torch.float64)
                self.remember(incumbent, Reading(empty, 0, network))
        self._readings.move_to_end(incumbent)
        return self._readings[incumbent]

    def _read_on(self, reading: Reading, count: int) -> None:
        """Evaluate a policy up to its first ``count`` samples."""
        if reading.count < count:
            assert reading.network is not None
            indices = self._sampling.order[reading.count : count]
            found = list(self._scorer.blocks(reading.network, self._settings.half, indices))
            reading.samples[:, indices] = torch.cat(found, 1)
            reading.count = count
        if count == len(self._scorer):
            reading.network = None
