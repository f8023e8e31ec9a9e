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
10   a[t-1]       the share of its size that was kept at the site before (0 at first)  share
===  ===========  ===================================================================  ==================

Action, ``Box(0, 1, (1,))``: the share of the site's size to keep, for a channel group the share of its channels. It
becomes the setting of the nearest size among those that leave every limit of the budget within reach (Algorithm 1,
exact; see `amc.space.budget.Space.allowed`). Where latency is limited and a larger one takes no more time, it becomes
that. ``info["setting"]`` and ``info["share"]`` tell what was done. Sites of every operator are decided alike: what a
setting is, the environment does not know. What features 1 to 7 tell is of the layers that the site is found in.

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

from amc.envs import drawing
from amc.evaluation.problem import Problem
from amc.space.sites import Choice, Setting

Observation = NDArray[np.float32]


class PruningEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """The environment over one problem."""

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  (as Gymnasium has it)

    def __init__(self, problem: Problem, render_mode: str | None = None) -> None:
        """``render_mode``: ``ansi`` draws the sites decided so far as text, ``rgb_array`` as a picture."""
        self.observation_space = spaces.Box(0.0, 1.0, (11,), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.render_mode = render_mode
        self.problem = problem
        self._space = problem.space
        self._static, self._macs = _static_features(problem)
        self._total = max(1.0, self._space.costs(self._space.full).get("macs", 1.0))
        self._prefix: Choice = ()
        self._share = 0.0
        self._worst: float | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._prefix, self._share = (), 0.0
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        site = len(self._prefix)
        setting = self.setting(float(np.clip(np.asarray(action).item(), 0.0, 1.0)))
        self._prefix, sizes = (*self._prefix, setting), self._space.sites[site].sizes
        self._share = sizes[self._space.settings[site].index(setting)] / sizes[-1]
        info: dict[str, Any] = {"setting": setting, "share": self._share}
        done = len(self._prefix) == len(self._space.names)
        reward = 0.0
        if done:
            info["evaluation"] = evaluation = self.problem.evaluate(self._prefix)
            reward = evaluation.reward
            if not math.isfinite(reward):
                reward = -1.0 if self._worst is None else self._worst
            self._worst = reward if self._worst is None else min(self._worst, reward)
        return self._observe(), reward, done, False, info

    def render(self) -> Any:
        """The share that every site keeps, of those decided so far; as text, or as a picture ``[H, W, 3]``, uint8."""
        kept = [site.sizes[p] for site, p in zip(self._space.sites, self._decided(), strict=False)]
        if self.render_mode == "ansi":
            return drawing.text(self._space.sites, kept)
        return drawing.picture(self._space.sites, kept) if self.render_mode == "rgb_array" else None

    def _decided(self) -> list[int]:
        return [self._space.settings[site].index(setting) for site, setting in enumerate(self._prefix)]

    def setting(self, share: float) -> Setting:
        """The next site's setting whose size is nearest to ``share`` of the original's and leaves the budget reachable.

        Where latency is limited, the largest that takes no more time.
        """
        allowed, site = self._space.allowed(self._prefix), self._space.sites[len(self._prefix)]
        sizes = dict(zip(site.settings, site.sizes, strict=True))
        wanted = share * site.sizes[-1]
        nearest = min(allowed, key=lambda setting: (abs(sizes[setting] - wanted), sizes[setting]))
        return self._space.as_fast(self._prefix, nearest, allowed)

    def _observe(self) -> Observation:
        decided = len(self._prefix)
        site = min(decided, len(self._space.names) - 1)
        now = self._space.costs((*self._prefix, *self._space.full[decided:])).get("macs", self._total)
        rest = self._macs[decided + 1 :].sum() / self._total
        dynamic = [1 - now / self._total, rest, self._share]
        features: Observation = np.clip(np.concatenate([self._static[site], dynamic]), 0, 1).astype(np.float32)
        return features


def _static_features(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features 0 to 7 of every site ``[S, 8]``, scaled, and each site's MACs ``[S]``."""
    rows = np.array(
        [(t, f.n, f.c, f.h, f.w, f.stride, f.k, f.macs) for t, f in enumerate(problem.features)], np.float64
    )
    return rows / np.maximum(rows.max(0), 1e-12), rows[:, 7]
