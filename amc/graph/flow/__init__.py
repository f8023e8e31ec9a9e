"""How channels flow through a network: one forward pass, in which every tensor carries a plane of ids.

Operators that move elements (views, permutations, concatenations, paddings, …) move their ids in the same way. A layer
with weights reads the ids of its input's channels and gives its output new ones. An element-wise operator ties the
ids that it combines. Where an operator needs all parts to have the same length (the groups of a convolution, the heads
of attention, the halves of a shuffle), the ids at equal places in the parts are tied. An operator without a rule
freezes what it reads.

An element has one id. Where it belongs to two independent channels at once (as the hidden features of a layer that
mixes positions, for every channel), the first is followed and the second is frozen.
"""

from amc.graph.flow import layers, moves, norms, pointwise, products  # noqa: F401  (they register their rules)
from amc.graph.flow.flow import Flow
from amc.graph.flow.records import STATISTICS, NormStatistic, Parts, Product, View, WeightedLayer

__all__ = ["STATISTICS", "Flow", "NormStatistic", "Parts", "Product", "View", "WeightedLayer"]
