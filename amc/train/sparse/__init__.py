"""Training of networks that are sparse from the start (``amc train --sparse``): few weights, which change places."""

from amc.train.sparse.density import counts
from amc.train.sparse.rules import SparseRule, sparse_rule, sparse_rules
from amc.train.sparse.training import SparseTraining

__all__ = ["SparseRule", "SparseTraining", "counts", "sparse_rule", "sparse_rules"]
