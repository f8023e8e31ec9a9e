"""AMC's agent (arXiv:1802.03494, section 3.2 and its published code): DDPG on Stable-Baselines3.

It adds to SB3's DDPG: the two-branch critic, a separate learning rate for each network, truncated-normal noise that
starts after the warm-up and decays per episode, one update per step after each episode, a moving-average baseline that
is subtracted from rewards, and the episode's reward for every step. Deviations are listed in docs/deviations.md.

SB3's actor ends in tanh over [-1, 1], scaled to the action space [0, 1]; this is AMC's sigmoid up to the slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

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
from amc.runtime.registry import about

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
SIGMA, DECAY = 0.5, 0.95  # on the action's scale of [0, 1]
BASELINE = 0.5  # weight of the old value in the moving average of rewards
BATCH, TAU, GAMMA = 64, 0.01, 1.0
REPLAY_EPISODES = 100


def warmup_episodes(evaluations: int) -> int:
    """Number of random episodes: 100 of 400 as in AMC; shorter searches keep the share.

    >>> warmup_episodes(400), warmup_episodes(60)
    (100, 15)
    """
    return min(100, max(1, evaluations // 4))


def search(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    hidden: Annotated[int, about("neurons of each hidden layer", ge=1)] = HIDDEN,
    actor_rate: Annotated[float, about("learning rate of the actor", gt=0)] = ACTOR_RATE,
    critic_rate: Annotated[float, about("learning rate of the critic", gt=0)] = CRITIC_RATE,
    sigma: Annotated[float, about("initial standard deviation of the noise, for actions in [0, 1]", gt=0)] = SIGMA,
    decay: Annotated[float, about("factor of that deviation after every episode", gt=0, le=1)] = DECAY,
    baseline: Annotated[float, about("weight of the old moving average of rewards", ge=0, le=1)] = BASELINE,
    batch: Annotated[int, about("transitions per update", ge=1)] = BATCH,
    tau: Annotated[float, about("soft-update rate of the target networks", gt=0, le=1)] = TAU,
    replay_episodes: Annotated[int, about("episodes in the replay buffer", ge=1)] = REPLAY_EPISODES,
) -> None:
    """Run one episode per evaluation."""
    env = PruningEnv(problem)
    steps = len(problem.space.names)
    agent = AmcDDPG(
        AmcPolicy,
        env,
        learning_rate=actor_rate,
        buffer_size=replay_episodes * steps,
        learning_starts=warmup_episodes(evaluations) * steps,
        batch_size=batch,
        tau=tau,
        gamma=GAMMA,
        train_freq=(1, "episode"),
        gradient_steps=-1,
        seed=seed,
        device="cpu",
        policy_kwargs={"net_arch": [hidden, hidden], "critic_rate": critic_rate},
        exploration=Exploration(sigma, decay, baseline),
        recorder=problem.record_episode,
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
        self.q_networks = [_TwoBranches(features_dim, int(np.prod(action_space.shape)), net_arch[0])]
        self.qf0 = self.q_networks[0]


class _TwoBranches(nn.Module):
    def __init__(self, states: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.states = states
        self.state = nn.Linear(states, hidden)
        self.action = nn.Linear(actions, hidden)
        self.value = nn.Linear(hidden, 1)

    def forward(self, both: Tensor) -> Tensor:
        state, action = both[:, : self.states], both[:, self.states :]
        value: Tensor = self.value(torch.relu(self.state(state) + self.action(action)))
        return value


class AmcPolicy(TD3Policy):
    """AMC's actor and critic, each with its own learning rate."""

    def __init__(self, *args: Any, critic_rate: float = CRITIC_RATE, **kwargs: Any) -> None:
        self._critic_rate = critic_rate
        super().__init__(*args, **kwargs)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return TwoBranchCritic(**kwargs).to(self.device)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        for group in self.critic.optimizer.param_groups:
            group["lr"] = self._critic_rate


@dataclass(frozen=True)
class Exploration:
    """Parameters of AMC's noise, and of its baseline of rewards."""

    sigma: float = SIGMA
    decay: float = DECAY
    baseline: float = BASELINE


class AmcDDPG(DDPG):
    """DDPG with AMC's exploration, reward and schedule, for a single environment with episodes of constant length."""

    def __init__(
        self,
        *args: Any,
        exploration: Exploration = Exploration(),
        recorder: Callable[[float, float | None, float | None], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """``recorder`` receives every episode's reward, deviation of the noise, and loss of the critic."""
        self._exploration, self._recorder = exploration, recorder
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._noise = np.random.default_rng(self.seed)
        self._episode: list[tuple[Any, ...]] = []
        self._baseline: float | None = None

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Do nothing: both rates are constant, and SB3 would set both to the same value."""

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise: 0.5 · 0.95^(episodes since the warm-up)."""
        assert self.env is not None
        steps = len(self.env.get_attr("_space")[0].names)
        episode = (self.num_timesteps - self.learning_starts) // steps
        return float(self._exploration.sigma * self._exploration.decay ** max(0, episode))

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.num_timesteps < learning_starts:
            action = self._noise.uniform(0, 1, (1, 1)).astype(np.float32)
        else:
            mean, _ = self.predict(self._last_obs, deterministic=True)  # type: ignore[arg-type]
            action = self.truncated_normal(float(np.asarray(mean).item())).reshape(1, 1)
        return action, self.policy.scale_action(action)

    def truncated_normal(self, mean: float) -> NDArray[np.float32]:
        """A sample ``[1]`` of the normal distribution around ``mean``, truncated to [0, 1]."""
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
        """Hold the episode back until its reward is known. The stored action is the one that was applied."""
        applied = np.array([[2 * infos[0]["share"] - 1]], np.float32)
        following = np.array([infos[0]["terminal_observation"]]) if dones[0] else new_obs
        self._episode.append((self._last_obs, following, applied, dones.copy(), infos))
        self._last_obs = new_obs
        self._last_original_obs = new_obs
        if dones[0]:
            final = float(reward[0])
            kept, before = self._exploration.baseline, self._baseline
            self._baseline = final if before is None else kept * before + (1 - kept) * final
            for earlier, after, action, done, info in self._episode:
                replay_buffer.add(earlier, after, action, np.array([final], np.float32), done, info)
            self._episode = []
            self._finished = final, self.sigma if self.num_timesteps > self.learning_starts else None
            if self.num_timesteps <= self.learning_starts:  # no update follows
                self._record(None)

    def _record(self, critic_loss: float | None) -> None:
        """Record the episode that has just finished."""
        if self._recorder is not None:
            self._recorder(*self._finished, critic_loss)

    def train(self, gradient_steps: int, batch_size: int = BATCH) -> None:
        """Run DDPG's updates on rewards minus their moving average."""
        assert self.replay_buffer is not None
        rewards = self.replay_buffer.rewards.copy()
        self.replay_buffer.rewards -= np.float32(self._baseline or 0.0)
        super().train(gradient_steps, batch_size)
        self.replay_buffer.rewards = rewards
        self._record(self.logger.name_to_value.get("train/critic_loss"))
