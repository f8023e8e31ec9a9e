"""BatchNorm statistics of the trained network itself, in place of those that training left on its way."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.reconstruction import recalibrate
from amc.task import Task
from amc.train.hooks import Hook


class RecomputedStatistics(Hook):
    """Recomputes them on calibration images when training ends (`amc.reconstruction.recalibration`)."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def after_training(self, model: nn.Module) -> None:
        """Replace the statistics of all BatchNorms that train."""
        recalibrate(model, [module for module in model.modules() if isinstance(module, _BatchNorm)], self._task)
