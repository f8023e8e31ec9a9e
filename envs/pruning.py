"""AMC's environment (arXiv:1802.03494, sections 3.1 to 3.3): one step a site, in forward order.

Observation, ``Box(0, 1, (11,))``, of the site about to be decided. Every feature is divided by its largest
value over the sites, so all lie in [0, 1]:

===  ===========  ===================================================================  ==================
 #   name         meaning                                                              unit before scaling
===  ===========  ===================================================================  ==================
 0   t            the site's number                                                    sites
 1   n            output channels of the site's first layer                            channels
 2   c            its input channels                                                   channels
 3   h            height of its input                                                  pixels
 4   w            width of its input                                                   pixels
 5   stride       its stride                                                           pixels
 6   k            its kernel size                                                      pixels
 7   FLOPs[t]     MACs of the layers that the site's channels come out of              MACs, of the largest
 8   reduced      MACs saved by the sites decided so far (later ones whole)            MACs, of the network
 9   rest         MACs of the layers that later sites' channels come out of            MACs, of the network
10   a[t-1]       the share of channels that was kept at the site before (0 at first)  share
===  ===========  ===================================================================  ==================

Action, ``Box(0, 1, (1,))``: the share of the site's channels to keep. It becomes the nearest legal width, and
that at most the widest that leaves every limit of the budget within reach (Algorithm 1, exact; see
`amc.space.budget.Space.allowed`). Where latency is limited and a wider one takes no more time, it becomes that.
``info["width"]`` and ``info["share"]`` tell what was done.

Reward: 0 until the last site, then the problem's reward of the policy. AMC gives this last reward to every
step of the episode, which an environment cannot do in hindsight; the agent does (see `amc.search.ddpg`).

An episode ends (``terminated``) after the last site; ``info["evaluation"]`` then holds the evaluation. A failed
evaluation is rewarded with the worst reward seen so far, or -1.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amc.evaluation.problem import Problem

Observation = NDArray[np.float32]


class PruningEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """The environment over one problem."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(self, problem: Problem) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (11,), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._problem = problem
        self._space = problem.space
        self._static, self._macs = _static_features(problem)
        self._total = max(1.0, self._space.costs(self._space.full).get("macs", 1.0))
        self._prefix: tuple[int, ...] = ()
        self._worst: float | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._prefix = ()
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        site = len(self._prefix)
        width = self.width(float(np.clip(np.asarray(action).item(), 0.0, 1.0)))
        self._prefix = (*self._prefix, width)
        info: dict[str, Any] = {"width": width, "share": width / self._space.full[site]}
        done = len(self._prefix) == len(self._space.names)
        reward = 0.0
        if done:
            info["evaluation"] = evaluation = self._problem.evaluate(self._prefix)
            reward = evaluation.reward
            if not math.isfinite(reward):
                reward = -1.0 if self._worst is None else self._worst
            self._worst = reward if self._worst is None else min(self._worst, reward)
        return self._observe(), reward, done, False, info

    def width(self, share: float) -> int:
        """The legal width nearest to ``share`` of the next site's channels that leaves the budget reachable.

        Where latency is limited, the widest that takes no more time.
        """
        allowed = self._space.allowed(self._prefix)
        wanted = share * self._space.full[len(self._prefix)]
        nearest = min(allowed, key=lambda setting: (abs(setting - wanted), setting))
        return self._space.as_fast(self._prefix, nearest, allowed)

    def _observe(self) -> Observation:
        decided = len(self._prefix)
        site = min(decided, len(self._space.names) - 1)
        now = self._space.costs((*self._prefix, *self._space.full[decided:])).get("macs", self._total)
        share = self._prefix[-1] / self._space.full[decided - 1] if decided else 0.0
        rest = self._macs[decided + 1 :].sum() / self._total
        dynamic = [1 - now / self._total, rest, share]
        features: Observation = np.clip(np.concatenate([self._static[site], dynamic]), 0, 1).astype(np.float32)
        return features


def _static_features(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features 0 to 7 of every site ``[S, 8]``, scaled, and each site's MACs ``[S]``."""
    rows = np.array(
        [(t, f.n, f.c, f.h, f.w, f.stride, f.k, f.macs) for t, f in enumerate(problem.features)], np.float64
    )
    return rows / np.maximum(rows.max(0), 1e-12), rows[:, 7]
