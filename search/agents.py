"""Agents of Stable-Baselines3 with their defaults on AMC's environment, to compare `amc.search.ddpg` with."""

from __future__ import annotations

from typing import Annotated

from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from amc.envs.pruning import PruningEnv
from amc.evaluation.problem import Problem
from amc.runtime.registry import about


def td3(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    warmup: Annotated[float, about("share of the episodes that are random, at first", ge=0, le=1)] = 0.25,
) -> None:
    """TD3 with its defaults, after a share of random episodes."""
    env, steps = PruningEnv(problem), len(problem.space.names)
    first = max(1, int(warmup * evaluations)) * steps
    agent = TD3("MlpPolicy", env, seed=seed, device="cpu", gamma=1.0, learning_starts=first)
    agent.learn(evaluations * steps)


def sac(
    problem: Problem,
    evaluations: int,
    seed: int,
    *,
    warmup: Annotated[float, about("share of the episodes that are random, at first", ge=0, le=1)] = 0.25,
) -> None:
    """SAC with its defaults, after a share of random episodes."""
    env, steps = PruningEnv(problem), len(problem.space.names)
    first = max(1, int(warmup * evaluations)) * steps
    agent = SAC("MlpPolicy", env, seed=seed, device="cpu", gamma=1.0, learning_starts=first)
    agent.learn(evaluations * steps)


def ppo(problem: Problem, evaluations: int, seed: int) -> None:
    """PPO with its defaults, on rollouts of about eight episodes.

    Up to eight episodes run in parallel (a divisor of the evaluations), so that one forward pass of the agent decides
    for all of them. TD3 and SAC would gain nothing, since they spend nearly all time on one update per step.
    """
    steps, parallel = len(problem.space.names), max(n for n in range(1, 9) if evaluations % n == 0)
    env = DummyVecEnv([lambda: PruningEnv(problem)] * parallel)
    length = max(2 if parallel == 1 else 1, min(8, evaluations) // parallel * steps)
    agent = PPO("MlpPolicy", env, seed=seed, device="cpu", gamma=1.0, n_steps=length, batch_size=parallel * length)
    agent.learn(evaluations * steps, callback=_Stop(problem, evaluations))


class _Stop(BaseCallback):
    """Stops PPO in the middle of the last rollout once the evaluations are used up."""

    def __init__(self, problem: Problem, evaluations: int) -> None:
        super().__init__()
        self._problem, self._last = problem, problem.proposals + evaluations

    def _on_step(self) -> bool:
        return self._problem.proposals < self._last
