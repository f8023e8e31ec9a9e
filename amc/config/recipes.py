"""Recipes of training after pruning: named presets of the settings of `amc.config.FinetuneConfig`.

A recipe is written out when a configuration is made: what is not given has the recipe's value, and what is given
counts. A configuration on disk therefore holds every value, and means the same whatever recipes become later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RecipeName = Literal["quick", "standard", "thorough", "none"]


@dataclass(frozen=True)
class Recipe:
    """A preset."""

    about: str
    length: float
    """Training, as a multiple of what suits the data (2 epochs, 20 on digits), where no epochs are given."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is not as `FinetuneConfig` has it by default."""


RECIPES: Mapping[str, Recipe] = {
    "quick": Recipe("a brief training with labels and the original's soft targets", 1.0),
    "standard": Recipe(
        "five times as long, the best weights on the search split, and the original trained on for comparison",
        5.0,
        {"checks": 4, "train_original": True},
    ),
    "thorough": Recipe(
        "twenty times as long, with more candidates tried by successive halving",
        20.0,
        {"checks": 8, "train_original": True, "candidates": 6, "halving": True, "trial_share": 0.02},
    ),
    "none": Recipe(
        "no labels: the original's soft targets on the calibration images only",
        10.0,
        {"images": "calibration", "distillation": 1.0, "candidates": 1},
    ),
}
