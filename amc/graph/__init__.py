"""Which channels of a network can change together, and cutting them."""

from amc.graph.build import build_graph
from amc.graph.channels import (
    ActivationProduct,
    Axis,
    BareParameter,
    Kept,
    Layer,
    LayerKind,
    ModuleKind,
    ShapeAttribute,
    Statistic,
)
from amc.graph.narrowing import narrowed
from amc.graph.sites import Graph, Refusal, Site, SiteFeatures, consumers
from amc.graph.surgery import ChannelCutter
from amc.graph.trace import Trace

__all__ = [
    "ActivationProduct",
    "Axis",
    "BareParameter",
    "ChannelCutter",
    "Graph",
    "Kept",
    "Layer",
    "LayerKind",
    "ModuleKind",
    "Refusal",
    "ShapeAttribute",
    "Site",
    "SiteFeatures",
    "Statistic",
    "Trace",
    "build_graph",
    "consumers",
    "narrowed",
]
