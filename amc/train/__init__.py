"""Training with gradients: of a network from scratch, and of a pruned one with the original as its teacher."""

from amc.train.checkpoint import checkpoint_precision
from amc.train.hooks import Hook, Step
from amc.train.plan import Constant, OneCycle, Plan, Sgd, asked_precision, make_plan
from amc.train.sparse_norms import SparseNorms
from amc.train.trainer import Trainer, fastest_precision, train

__all__ = [
    "Constant",
    "Hook",
    "OneCycle",
    "Plan",
    "Sgd",
    "SparseNorms",
    "Step",
    "Trainer",
    "asked_precision",
    "checkpoint_precision",
    "fastest_precision",
    "make_plan",
    "train",
]
