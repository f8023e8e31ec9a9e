"""Which criteria, scopes, schedules and recoveries can be combined."""

from __future__ import annotations

from amc.config import Config
from amc.errors import ConfigError
from amc.importance import check_scores, load_criterion
from amc.train import BEFORE_TRAINING, NO_TRAINING, check_schedule, recovery_settings

ONE_PHASE = ("one-shot", BEFORE_TRAINING)
"""Schedules that prune once."""


def check_combination(config: Config) -> None:
    """Raise ConfigError for an unknown choice, and for a combination that is impossible."""
    finetune, search = config.finetune, config.search
    check_schedule(finetune.schedule, finetune.schedule_options)
    recovery_settings(finetune.recover, finetune.recover_options)
    criterion = load_criterion(search.criterion)
    if search.criterion_scope in ("global", "flops"):
        check_scores(criterion)
    trains = finetune.recover != NO_TRAINING and finetune.epochs != 0
    if finetune.schedule != "one-shot" and not trains:
        asked = f"--recover {NO_TRAINING}" if finetune.recover == NO_TRAINING else "--finetune-epochs 0"
        raise ConfigError(f"--schedule {finetune.schedule} cannot be combined with {asked}: it trains what it "
                          "prunes. Leave one of the two out.")  # fmt: skip
    if finetune.recover == "scratch" and finetune.schedule not in ONE_PHASE:
        raise ConfigError(f"--recover scratch cannot be combined with --schedule {finetune.schedule}: every phase "
                          "would discard what the previous one has learned. Use --schedule one-shot.")  # fmt: skip
    if finetune.schedule == BEFORE_TRAINING:
        _check_before_training(config)


def _check_before_training(config: Config) -> None:
    """Raise ConfigError if pruning before training is combined with trained weights, a search or rewinding."""
    if config.model.weights in (None, "pretrained"):
        raise ConfigError(f"--schedule {BEFORE_TRAINING} prunes a network that has not been trained: "
                          "give --weights random, or a file of first weights.")  # fmt: skip
    if config.search.criterion_scope == "site":
        raise ConfigError(f"--schedule {BEFORE_TRAINING} cannot be combined with a search, which scores networks "
                          "before they are trained: give --criterion-scope local, global or flops.")  # fmt: skip
    if config.finetune.recover not in ("finetune", "scratch"):
        raise ConfigError(f"--schedule {BEFORE_TRAINING} cannot be combined with --recover "
                          f"{config.finetune.recover}: nothing has been trained yet. Leave --recover out.")  # fmt: skip
