"""AMC's agent (arXiv:1802.03494, section 3.2 and its published code): DDPG on Stable-Baselines3.

What it adds to SB3's DDPG: the two-branch critic, a learning rate for each network, truncated-normal noise that
begins after the warm-up and decays by the episode, one update a step after each episode, rewards less a moving
average, and the episode's reward given to every step. Deviations are listed in docs/deviations.md.

SB3's actor ends in tanh over [-1, 1], which it scales to the action space [0, 1]: AMC's sigmoid, up to the slope.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from amc.envs.pruning import PruningEnv
from amc.evaluation.problem import Problem

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
SIGMA, DECAY = 0.5, 0.95  # on the action's scale of [0, 1]
BASELINE = 0.5  # what is kept of the moving average of rewards
BATCH, TAU, GAMMA = 64, 0.01, 1.0
REPLAY_EPISODES = 100


def warmup_episodes(evaluations: int) -> int:
    """AMC explores 100 of 400 episodes at random; shorter searches keep the share."""
    return min(100, max(1, evaluations // 4))


def search(problem: Problem, evaluations: int, seed: int) -> None:
    """Run one episode an evaluation."""
    env = PruningEnv(problem)
    steps = len(problem.space.names)
    agent = AmcDDPG(
        AmcPolicy,
        env,
        learning_rate=ACTOR_RATE,
        buffer_size=REPLAY_EPISODES * steps,
        learning_starts=warmup_episodes(evaluations) * steps,
        batch_size=BATCH,
        tau=TAU,
        gamma=GAMMA,
        train_freq=(1, "episode"),
        gradient_steps=-1,
        seed=seed,
        device="cpu",
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
    )
    agent.learn(evaluations * steps)


class TwoBranchCritic(ContinuousCritic):
    """Q(s, a): state and action are embedded separately (300 each), summed, then 300 → 1."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, net_arch, features_extractor, features_dim, **kwargs)
        self.q_networks = [_TwoBranches(features_dim, int(np.prod(action_space.shape)))]
        self.qf0 = self.q_networks[0]


class _TwoBranches(nn.Module):
    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.states = states
        self.state = nn.Linear(states, HIDDEN)
        self.action = nn.Linear(actions, HIDDEN)
        self.value = nn.Linear(HIDDEN, 1)

    def forward(self, both: Tensor) -> Tensor:
        state, action = both[:, : self.states], both[:, self.states :]
        value: Tensor = self.value(torch.relu(self.state(state) + self.action(action)))
        return value


class AmcPolicy(TD3Policy):
    """AMC's actor and critic, each with its own learning rate."""

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return TwoBranchCritic(**kwargs).to(self.device)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        for group in self.critic.optimizer.param_groups:
            group["lr"] = CRITIC_RATE


class AmcDDPG(DDPG):
    """DDPG with AMC's exploration, reward and schedule. For one environment whose episodes have one length."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self._noise = np.random.default_rng(self.seed)
        self._episode: list[tuple[Any, ...]] = []
        self._baseline: float | None = None

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Both rates are constant, and not the same."""

    @property
    def sigma(self) -> float:
        """Deviation of the noise: 0.5 · 0.95^(episodes since the warm-up)."""
        assert self.env is not None
        steps = len(self.env.get_attr("_space")[0].names)
        episode = (self.num_timesteps - self.learning_starts) // steps
        return float(SIGMA * DECAY ** max(0, episode))

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.num_timesteps < learning_starts:
            action = self._noise.uniform(0, 1, (1, 1)).astype(np.float32)
        else:
            mean, _ = self.predict(self._last_obs, deterministic=True)  # type: ignore[arg-type]
            action = self._truncated_normal(float(np.asarray(mean).item())).reshape(1, 1)
        return action, self.policy.scale_action(action)

    def _truncated_normal(self, mean: float) -> NDArray[np.float32]:
        """A normal draw around ``mean``, drawn again until it lies in [0, 1]."""
        while True:
            draw = self._noise.normal(mean, self.sigma, 256)
            inside = draw[(draw >= 0) & (draw <= 1)]
            if len(inside):
                return np.asarray(inside[:1], np.float32)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: Any,
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep the episode back until its reward is known; the action stored is the one that was applied."""
        applied = np.array([[2 * infos[0]["share"] - 1]], np.float32)
        following = np.array([infos[0]["terminal_observation"]]) if dones[0] else new_obs
        self._episode.append((self._last_obs, following, applied, dones.copy(), infos))
        self._last_obs = new_obs
        self._last_original_obs = new_obs
        if dones[0]:
            final = float(reward[0])
            self._baseline = final if self._baseline is None else BASELINE * self._baseline + (1 - BASELINE) * final
            for before, after, action, done, info in self._episode:
                replay_buffer.add(before, after, action, np.array([final], np.float32), done, info)
            self._episode = []

    def train(self, gradient_steps: int, batch_size: int = BATCH) -> None:
        """DDPG's updates on rewards less their moving average."""
        assert self.replay_buffer is not None
        rewards = self.replay_buffer.rewards.copy()
        self.replay_buffer.rewards -= np.float32(self._baseline or 0.0)
        super().train(gradient_steps, batch_size)
        self.replay_buffer.rewards = rewards
