"""AMC's environment (arXiv:1802.03494, sections 3.1 to 3.3): one step per site, in forward order.

Observation, ``Box(0, 1, (11,))``: features of the next site. Each feature is divided by its largest value over all
sites or by the network's value, so all are in [0, 1]:

===  ===========  ===================================================================  ==================
 #   name         meaning                                                              unit before scaling
===  ===========  ===================================================================  ==================
 0   t            index of the site                                                    sites
 1   n            output channels of the site's first layer                            channels
 2   c            its input channels                                                   channels
 3   h            height of its input                                                  pixels
 4   w            width of its input                                                   pixels
 5   stride       its stride                                                           pixels
 6   k            its kernel size                                                      pixels
 7   FLOPs[t]     MACs of the layers that produce the site's channels                  MACs
 8   reduced      MACs saved by the decided sites, with later ones unchanged           MACs, of the network
 9   rest         MACs of the layers that produce later sites' channels                MACs, of the network
10   a[t-1]       kept share of the previous site (0 at first)                         share
===  ===========  ===================================================================  ==================

Action, ``Box(0, 1, (1,))``: the share of the site's size to keep; for a channel group, the share of its channels. It is
mapped to the setting with the nearest size among those with which every limit can still be met (Algorithm 1, exact; see
`amc.space.budget.Space.allowed`). With a limit on latency, it is the largest setting that takes no more time than this
one. ``info["setting"]`` and ``info["share"]`` are the applied setting and its share. The environment does not interpret
settings, so it works with the sites of any operator. Features 1 to 7 describe the layers at the site.

Reward: 0 until the last site, then the problem's reward of the policy. AMC gives this reward to every step of the
episode. An environment cannot do that, so the agent does (see `amc.search.ddpg`).

An episode ends (``terminated``) after the last site; ``info["evaluation"]`` then has the evaluation. The reward of a
failed evaluation is the worst reward so far, or -1.
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
    """The environment for one problem.

    >>> from amc.envs.toy import toy_problem
    >>> env = PruningEnv(toy_problem(sites=2)[0])
    >>> observation, info = env.reset()
    >>> observation, reward, terminated, truncated, info = env.step(np.array([0.5], np.float32))
    >>> info, terminated
    ({'setting': 4, 'share': 0.5}, False)
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's convention)

    def __init__(self, problem: Problem, render_mode: str | None = None) -> None:
        """``render_mode``: ``ansi`` draws the decided sites as text, ``rgb_array`` as an image."""
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
        """Draw the kept share of every decided site, as text or as an image ``[H, W, 3]``, uint8."""
        kept = [site.sizes[p] for site, p in zip(self._space.sites, self._decided(), strict=False)]
        if self.render_mode == "ansi":
            return drawing.text(self._space.sites, kept)
        return drawing.picture(self._space.sites, kept) if self.render_mode == "rgb_array" else None

    def _decided(self) -> list[int]:
        return [self._space.settings[site].index(setting) for site, setting in enumerate(self._prefix)]

    def setting(self, share: float) -> Setting:
        """The setting of the next site for an action: the nearest size with which the budget can still be met.

        With a limit on latency, it is the largest setting that takes no more time than this one.
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
    """Features 0 to 7 of every site ``[S, 8]``, scaled, and the MACs of every site ``[S]``."""
    rows = np.array(
        [(t, f.n, f.c, f.h, f.w, f.stride, f.k, f.macs) for t, f in enumerate(problem.features)], np.float64
    )
    return rows / np.maximum(rows.max(0), 1e-12), rows[:, 7]
