"""Training with gradients: of a network from scratch, and of a pruned one with the original as its teacher."""

from amc.train.checkpoint import checkpoint_precision
from amc.train.holding import held
from amc.train.hooks import Hook, Step
from amc.train.plan import Constant, OneCycle, Plan, Sgd, asked_precision, make_plan
from amc.train.recovery import (
    NO_TRAINING,
    Pruned,
    Recovered,
    Recovery,
    recovered,
    recoveries,
    recovery_settings,
    try_recovery,
)
from amc.train.schedule import Phase, check_schedule, phases, schedules
from amc.train.sparse_norms import SparseNorms
from amc.train.trainer import Trainer, fastest_precision, train

__all__ = [
    "NO_TRAINING",
    "Constant",
    "Hook",
    "OneCycle",
    "Phase",
    "Plan",
    "Pruned",
    "Recovered",
    "Recovery",
    "Sgd",
    "SparseNorms",
    "Step",
    "Trainer",
    "asked_precision",
    "check_schedule",
    "checkpoint_precision",
    "fastest_precision",
    "held",
    "make_plan",
    "phases",
    "recovered",
    "recoveries",
    "recovery_settings",
    "schedules",
    "train",
    "try_recovery",
]
