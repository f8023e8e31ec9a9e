"""Training with gradients: of a network from scratch, and of a pruned one with the original as its teacher."""

from amc.train.averaging import WeightAverage
from amc.train.best_weights import BestWeights
from amc.train.checkpoint import checkpoint_precision
from amc.train.early_weights import EarlyWeights
from amc.train.holding import HeldSettings, held
from amc.train.hooks import Hook, Step
from amc.train.plan import Constant, OneCycle, Plan, Sgd, asked_precision, make_plan
from amc.train.recipe import training_hooks, training_task
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
from amc.train.schedule import BEFORE_TRAINING, Phase, check_schedule, phases, schedules
from amc.train.sparse import SparseRule, SparseTraining, sparse_rule, sparse_rules
from amc.train.sparse_norms import SparseNorms
from amc.train.sparsify import DenseNetwork, Preparation, Sparsifier, preparation_settings, preparations, prepared
from amc.train.statistics import RecomputedStatistics
from amc.train.trainer import Trainer, fastest_precision, step_seconds, train

__all__ = [
    "BEFORE_TRAINING",
    "NO_TRAINING",
    "BestWeights",
    "Constant",
    "DenseNetwork",
    "EarlyWeights",
    "HeldSettings",
    "Hook",
    "OneCycle",
    "Phase",
    "Plan",
    "Preparation",
    "Pruned",
    "RecomputedStatistics",
    "Recovered",
    "Recovery",
    "Sgd",
    "SparseNorms",
    "SparseRule",
    "SparseTraining",
    "Sparsifier",
    "Step",
    "Trainer",
    "WeightAverage",
    "asked_precision",
    "check_schedule",
    "checkpoint_precision",
    "fastest_precision",
    "held",
    "make_plan",
    "phases",
    "preparation_settings",
    "preparations",
    "prepared",
    "recovered",
    "recoveries",
    "recovery_settings",
    "schedules",
    "sparse_rule",
    "sparse_rules",
    "step_seconds",
    "train",
    "training_hooks",
    "training_task",
    "try_recovery",
]
