"""Training of networks that are sparse from the start (``amc train --sparse``): few weights, which change places."""

from amc.train.sparse.density import DENSITIES, counts
from amc.train.sparse.rules import SparseRule, sparse_rule, sparse_rules
from amc.train.sparse.training import SparseTraining

__all__ = ["DENSITIES", "SparseRule", "SparseTraining", "counts", "sparse_rule", "sparse_rules"]
