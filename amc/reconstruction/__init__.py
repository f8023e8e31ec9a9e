"""Recovery without training: weights re-solved by least squares, and recomputed BatchNorm statistics."""

from amc.reconstruction.fold import NormFolder
from amc.reconstruction.least_squares import Reconstructor, lost_variances
from amc.reconstruction.moments import Moments, collect, moment_store, readers, solvable, sums_size
from amc.reconstruction.recalibration import recalibrate
from amc.reconstruction.rows import elements
from amc.reconstruction.sensitivity import Sensitivity, sensitivities
from amc.reconstruction.sequential import FAST, FULL, Effort, SequentialReconstruction

__all__ = [
    "FAST",
    "FULL",
    "Effort",
    "Moments",
    "NormFolder",
    "Reconstructor",
    "Sensitivity",
    "SequentialReconstruction",
    "collect",
    "elements",
    "lost_variances",
    "moment_store",
    "readers",
    "recalibrate",
    "sensitivities",
    "solvable",
    "sums_size",
]
