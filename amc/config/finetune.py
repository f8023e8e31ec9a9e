"""The settings of training after pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from amc.config.base import AUTO, Auto, Settings, setting
from amc.config.recipes import RECIPES, RecipeName


class FinetuneConfig(Settings):
    """Training after pruning."""

    section = "finetune"

    recipe: RecipeName = setting(
        "quick",
        "what the options below are where they are not given: quick (brief), standard (5 times as long; the original "
        "is trained on as well, to compare), thorough (20 times as long) or none (no labels: soft targets on the "
        "calibration images); docs/training.md says what each costs",
        "--recipe",
    )
    epochs: Annotated[float, Field(ge=0, le=10**6)] | Auto = setting(
        AUTO,
        "epochs of fine-tuning, fractions allowed; 0: none [auto: by the recipe; quick: 20 on digits, 2 elsewhere]",
        "--finetune-epochs",
    )
    images: Literal["train", "calibration"] = setting(
        "train", "what is trained on: the training split, or the calibration images", "--finetune-images"
    )
    lr: float = setting(0.03, "peak learning rate (SGD with Nesterov momentum, one cycle)", "--lr", gt=0, le=1000)
    batch_size: int = setting(128, "images per step", "--batch-size", ge=2, le=1 << 24)
    weight_decay: float = setting(5e-4, "L2 weight decay", "--weight-decay", ge=0, le=1000)
    distillation: float = setting(
        0.5, "weight of the original's soft targets in the loss; 0: labels only", "--distillation", ge=0, le=1
    )
    temperature: float = setting(4.0, "temperature of the soft targets", "--temperature", gt=0, le=10**6)
    label_smoothing: float = setting(
        0.0, "share of every label that is spread evenly over all classes", "--label-smoothing", ge=0, lt=1
    )
    ema_decay: float = setting(
        0.0, "decay a step of an exponential moving average of the weights, which is what is kept; 0: none",
        "--ema-decay", ge=0, lt=1,
    )  # fmt: skip
    checks: int = setting(
        0,
        "times that the search split is read along the training, besides once before it: the best weights are kept; "
        "0: the last ones",
        "--checks",
        ge=0,
        le=1000,
    )
    recompute_statistics: bool = setting(
        False, "recompute BatchNorm statistics on calibration images after training", "--recompute-statistics"
    )
    train_original: bool = setting(
        False,
        "train the original on for as long in the same way, to know what pruning alone costs; on in the recipes "
        "standard and thorough, where it doubles to triples the time of training",
        "--train-original",
    )
    candidates: int = setting(
        3, "policies that are fine-tuned briefly before one is chosen", "--candidates", ge=1, le=10**6
    )
    trial_share: float = setting(
        0.1, "length of the brief fine-tuning, as a share of the full one", "--trial-share", ge=0, le=1
    )
    halving: bool = setting(
        False,
        "successive halving: the better half of the candidates is trained for twice as long, until one is left",
        "--halving",
    )
    schedule: str = setting(
        "one-shot",
        "how the chosen policy is reached: one-shot, iterative (prune and train by turns), gradual, layerwise, "
        "before-training, or "
        "path/to/file.py:function (see amc list schedules)",
        "--schedule",
    )
    schedule_options: dict[str, Any] = setting(
        {}, "a setting of the schedule, as in steps=3; may be given several times", "--schedule-option"
    )
    recover: str = setting(
        "finetune",
        "what the pruned network is trained from, and by which learning rates: finetune, none, rewind-lr, "
        "rewind-weights, scratch, or path/to/file.py:function (see amc list recoveries)",
        "--recover",
    )
    recover_options: dict[str, Any] = setting(
        {}, "a setting of the recovery, as in share=0.5; may be given several times", "--recover-option"
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "auto (time both and take the faster), float32 or bfloat16",
        "--precision",
    )

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, values: Any) -> Any:
        """What is not given is as the recipe has it."""
        name = values.get("recipe", "quick") if isinstance(values, Mapping) else None
        return {**RECIPES[name].settings, **values} if isinstance(name, str) and name in RECIPES else values

    def replace(self, **changes: Any) -> Self:
        """These settings with some of them changed. With another recipe, values of the old one become the new one's.

        >>> FinetuneConfig(lr=0.1).replace(recipe="standard").train_original
        True
        """
        of_recipe = {} if "recipe" not in changes else RECIPES[self.recipe].settings
        defaults = {name: of_recipe.get(name, field.default) for name, field in type(self).model_fields.items()}
        kept = {name: getattr(self, name) for name in defaults}
        if "recipe" in changes:
            kept = {name: value for name, value in kept.items() if value != defaults[name]}
        return type(self)(**kept | changes)
