"""Races: a policy against the incumbent, on as few samples as tell which of the two is better.

Both are read on the same samples, in one order (`amc.evaluation.sampling`). A race is decided when the mean difference
of their losses is `CLEAR` standard errors from 0, or when the share `MOST` of the samples was read.
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
"""Standard errors of the mean paired difference."""
LEAST = 2
"""Blocks that are read in any race: the spread of one block says too little."""
MOST = 0.5
"""Share of the samples that is read in any race: half of them estimate the mean as well as all of them estimate the
mean over the distribution that they were drawn from."""
_HELD = 4  # policies whose samples are held


@dataclass(eq=False)
class Reading:
    """Loss and metric of a policy on the first ``count`` samples of the race's order."""

    samples: Tensor
    """``[2, N]``; not set where nothing was read."""
    count: int
    network: nn.Module | None = None
    """Reads on, its BatchNorms folded; None where all samples were read."""


class Racer:
    """Runs races, and holds what was read of the last few policies: an incumbent is not read twice."""

    def __init__(self, networks: PolicyNetworks, scorer: Scorer, settings: EvaluationSettings) -> None:
        self._networks, self._scorer, self._settings = networks, scorer, settings
        self._readings: OrderedDict[Choice, Reading] = OrderedDict()

    def race(self, choice: Choice, incumbent: Choice, handicap: float = 1.0) -> Race:
        """Compare a policy with the ``incumbent``; the policy's losses count ``handicap`` times."""
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
        """Hold what was read of a policy that may be an incumbent. Its network keeps the tensors that it has now."""
        if reading.network is not None:
            reading.network = shallow_copy(reading.network)
        self._readings[choice] = reading
        if len(self._readings) > _HELD:
            self._readings.popitem(last=False)

    @cached_property
    def _sampling(self) -> Sampling:
        """The order in which samples are read: hard ones for the original first; any order by the distance of logits,
        which is 0 for the original."""
        if self._scorer.compares_logits:
            return Sampling(torch.ones(len(self._scorer), dtype=torch.float64))
        original = self._networks.plain(self._networks.full)
        return Sampling.by_losses(self._scorer.read(original, self._settings.half)[0])

    def _reading(self, incumbent: Choice) -> Reading:
        """What is known of the incumbent."""
        if incumbent not in self._readings:
            network = self._networks.network(incumbent, self._settings)
            with self._scorer.folded(network):
                empty = torch.empty(2, len(self._scorer), dtype=torch.float64)
                self.remember(incumbent, Reading(empty, 0, network))
        self._readings.move_to_end(incumbent)
        return self._readings[incumbent]

    def _read_on(self, reading: Reading, count: int) -> None:
        """Read a policy's first ``count`` samples."""
        if reading.count < count:
            assert reading.network is not None
            indices = self._sampling.order[reading.count : count]
            found = list(self._scorer.blocks(reading.network, self._settings.half, indices))
            reading.samples[:, indices] = torch.cat(found, 1)
            reading.count = count
        if count == len(self._scorer):
            reading.network = None
