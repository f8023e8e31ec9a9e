"""Training the pruned structure from scratch (Liu et al. 2019, arXiv:1810.05270, "Scratch-E" with equal epochs).

Every layer draws its weights anew, as its class does when it is made. Parameters of modules that cannot do that (bare
ones, such as position embeddings) are drawn from a normal distribution with their present mean and deviation. What is
frozen stays: removed branches remain zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from amc.train.plan import Plan
from amc.train.recovery import Pruned, Recovered


def scratch(pruned: Pruned, plan: Plan) -> Recovered:
    """Draw all weights anew, and train them by the configuration's one cycle."""
    redraw(pruned.model, plan.seed)
    return Recovered(pruned.model, plan)


def redraw(model: nn.Module, seed: int) -> None:
    """Draw the trainable weights of a network anew, in place, and reset the statistics beside them.

    >>> layer = nn.Linear(3, 1)
    >>> redraw(layer, 0)
    >>> first = layer.weight.tolist()
    >>> redraw(layer, 0)
    >>> layer.weight.tolist() == first
    True
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False))
            frozen = {name: p.detach().clone() for name, p in own.items() if not p.requires_grad}
            if own and len(frozen) == len(own):
                continue
            reset: Any = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            else:
                for parameter in own.values():
                    parameter.copy_(_like(parameter))
            for name, value in frozen.items():
                own[name].copy_(value)


def _like(parameter: torch.Tensor) -> torch.Tensor:
    """A normal draw with a tensor's mean and deviation."""
    deviation = parameter.std() if parameter.numel() > 1 else torch.zeros_like(parameter).sum()
    return parameter.mean() + deviation * torch.randn(parameter.shape).to(parameter)
