"""Gymnasium environments over a problem. ``gymnasium.make("amc/Pruning-v0", problem=problem)``."""

from __future__ import annotations

import gymnasium

from amc.envs.pruning import PruningEnv

__all__ = ["PruningEnv"]

if "amc/Pruning-v0" not in gymnasium.registry:
    gymnasium.register("amc/Pruning-v0", entry_point="amc.envs.pruning:PruningEnv")
