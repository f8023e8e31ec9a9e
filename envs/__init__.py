"""Gymnasium environments for problems.

===================  ==================================================================================
``amc/Pruning-v0``   a network: ``problem=`` from `amc.make_problem`, or that function's arguments;
                     without arguments, the embedded example
``amc/Toy-v0``       a toy problem with a known optimum; arguments of `amc.envs.toy.toy_problem`
===================  ==================================================================================

Gymnasium imports this package if the name has it as a prefix:

>>> import gymnasium
>>> env = gymnasium.make("amc.envs:amc/Toy-v0")
>>> observation, info = env.reset(seed=0)
>>> observation.shape, env.action_space.shape
((11,), (1,))
"""

from __future__ import annotations

import gymnasium

from amc.envs.pruning import PruningEnv

__all__ = ["PruningEnv"]

_MADE_BY = {"amc/Pruning-v0": "amc.api:make_environment", "amc/Toy-v0": "amc.envs.toy:toy_environment"}

for _name, _entry_point in _MADE_BY.items():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point=_entry_point)
