"""Stable-Baselines3's agents as they are, on AMC's environment: what the faithful agent is compared with."""

from __future__ import annotations

from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from amc.envs.pruning import PruningEnv
from amc.problem import Problem


def td3(problem: Problem, evaluations: int, seed: int) -> None:
    """TD3 with its defaults; the first quarter of the episodes is random."""
    env, steps = PruningEnv(problem), len(problem.space.names)
    agent = TD3("MlpPolicy", env, seed=seed, device="cpu", gamma=1.0, learning_starts=max(1, evaluations // 4) * steps)
    agent.learn(evaluations * steps)


def sac(problem: Problem, evaluations: int, seed: int) -> None:
    """SAC with its defaults; the first quarter of the episodes is random."""
    env, steps = PruningEnv(problem), len(problem.space.names)
    agent = SAC("MlpPolicy", env, seed=seed, device="cpu", gamma=1.0, learning_starts=max(1, evaluations // 4) * steps)
    agent.learn(evaluations * steps)


def ppo(problem: Problem, evaluations: int, seed: int) -> None:
    """PPO with its defaults, on rollouts of eight episodes."""
    env, steps = PruningEnv(problem), len(problem.space.names)
    rollout = max(2, min(8, evaluations) * steps)
    agent = PPO("MlpPolicy", env, seed=seed, device="cpu", gamma=1.0, n_steps=rollout, batch_size=rollout)
    agent.learn(evaluations * steps, callback=_Stop(problem, evaluations))


class _Stop(BaseCallback):
    """Ends the last rollout, which PPO would complete, when the evaluations are spent."""

    def __init__(self, problem: Problem, evaluations: int) -> None:
        super().__init__()
        self._problem, self._last = problem, problem.proposals + evaluations

    def _on_step(self) -> bool:
        return self._problem.proposals < self._last
