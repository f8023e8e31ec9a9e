"""What can be seen to be wrong with a configuration before a run begins."""

from __future__ import annotations

from amc.config import Config, DataConfig
from amc.errors import ConfigError
from amc.evaluation.reward import load_reward
from amc.importance import Need, load_criterion
from amc.latency import is_profile, load_latency_model
from amc.pipeline.combinations import check_combination
from amc.pipeline.spaces import check_operators, offers_branches
from amc.runtime.tracking import check_log
from amc.search import check_searcher, keeps_study, searchers
from amc.space.budget import UNITS, Budget
from amc.task import Task, load_objective


def check(config: Config) -> None:
    """Raise AmcError for mistakes in a configuration that can be found before anything is loaded."""
    Budget.from_config(config.budget).limits(dict.fromkeys(UNITS, 1e12))
    check_searcher(config.search.searcher, config.search.searcher_options)
    check_combination(config)
    check_operators(config)
    if config.search.storage and not keeps_study(config.search.searcher):
        able = ", ".join(filter(keeps_study, searchers()))
        raise ConfigError(f"--storage is for the searchers that keep a study: {able}.")
    if config.search.storage and config.budget.latency:
        raise ConfigError(
            "--storage cannot be combined with --latency: every process predicts latency from its own measurements, "
            "so a policy may be within the limit for one and not for another. Leave --storage out."
        )
    if config.search.storage:
        from amc.search.study import check_storage

        check_storage(config.search.storage)
    named = config.search.latency_model
    if config.budget.latency and named and not is_profile(named):
        if offers_branches(config):
            asked = "--branches" if config.budget.branches is not None else "--operators branches"
            raise ConfigError(
                f"{asked} cannot be combined with --latency-model {named}: only profiles predict the "
                "latency of a network without some of its branches. Leave one of the two out."
            )
        load_latency_model(named)
    if config.search.latency_aware:
        check_latency_aware(config)
    load_reward(config.search.reward)
    load_objective(config.objective)
    if config.data.inputs is not None:
        if config.data.name != DataConfig().name:
            raise ConfigError(f"--calibration takes the place of --data {config.data.name}: leave one of the two out.")
        check_without_labels(config)
    check_log(config.log)


def check_latency_aware(config: Config) -> None:
    """Raise ConfigError for an option that cannot be combined with ``--latency-aware``."""
    search = config.search
    named = search.latency_model
    others = {
        "--latency": config.budget.latency is not None,
        f"--reward {search.reward}": search.reward != "loss",
        f"--criterion-scope {search.criterion_scope}": search.criterion_scope != "site",
        "--storage": search.storage is not None,
        f"--latency-model {named}": named is not None and not is_profile(named),
    }
    for option in (option for option, given in others.items() if given):
        raise ConfigError(f"--latency-aware cannot be combined with {option}: leave one of the two out.")


def check_without_labels(config: Config) -> None:
    """Raise ConfigError for an option that needs labels; called if the data have none."""
    finetune = config.finetune
    asked = {
        "--search-objective loss": config.search.objective == "loss" and config.objective == Config().objective,
        f"--label-smoothing {finetune.label_smoothing:g}": finetune.label_smoothing > 0,
        f"--distillation {finetune.distillation:g}": finetune.distillation == 0,
    }
    for option in (option for option, given in asked.items() if given):
        raise ConfigError(f"{option} needs labels, but the data are inputs only: leave it out, or give labelled data.")


def check_gradients(task: Task, config: Config) -> None:
    """Raise ConfigError for a criterion that needs gradients if the objective is a distance, whose gradient is 0."""
    name = config.search.criterion
    if task.objective.projection is not None and Need.GRADIENTS in load_criterion(name).needs:
        raise ConfigError(
            f"--criterion {name} needs the gradient of a loss by labels, but the data are inputs only: use obs or "
            "another that does not (amc list criteria)."
        )
