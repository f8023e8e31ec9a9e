"""How channels flow through a network: one forward pass, in which every tensor carries a plane of ids.

Operators that move elements (views, permutations, concatenations, paddings, …) move the ids just so. A layer
with weights reads the ids of its input's channels and gives its output fresh ones. An element-wise operator ties
the ids that it combines. Where an operator needs all parts to have one length (the groups of a convolution, the
heads of attention, the halves of a shuffle), the ids of equal places in the parts are tied. An operator that is
not known freezes what it reads.

Only one dimension of meaning is followed: a tensor whose elements belong to two independent channels at once (the
hidden features of a layer that mixes positions, for every channel) keeps the first, and the second is frozen.
"""

from amc.graph.flow import layers, moves, norms, pointwise, products  # noqa: F401  (they register their rules)
from amc.graph.flow.flow import Flow
from amc.graph.flow.records import STATISTICS, NormStatistic, Parts, Product, View, WeightedLayer

__all__ = ["STATISTICS", "Flow", "NormStatistic", "Parts", "Product", "View", "WeightedLayer"]
