"""The space of a run: the settings of every site, exact costs and limits, from the configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from amc.config import AUTO, BudgetConfig, Config, unless_auto
from amc.errors import ConfigError
from amc.evaluation.reward import load_reward
from amc.latency import is_profile
from amc.latency.constraint import LatencyConstraint
from amc.latency.prediction import CorrectedCosts, LatencyPrediction, effective_widths
from amc.operators.compose import cost_model, offered_sites, unproved_savings
from amc.operators.operator import NetworkFacts, SettingBounds
from amc.operators.registry import Operators, beyond_widths, foreign, load_operators
from amc.operators.weights_file import OPSET
from amc.space.budget import FIELDS, UNITS, Budget, Space


def make_space(
    config: Config,
    network: NetworkFacts,
    latency: LatencyConstraint | None = None,
    predicted: LatencyPrediction | None = None,
) -> Space:
    """The policies that the operators offer under the configuration's budget. Raises BudgetError if it is unreachable.

    Without ``latency``, a limit on latency is ignored. If only latency is limited, the legal settings are those at
    which the latency changes. ``predicted`` adds latency to the costs without limiting it, for a latency-aware search.
    """
    search, asked = config.search, config.budget.replace(latency=None)
    bounds = SettingBounds(search.least_share, unless_auto(search.channel_step), unless_auto(search.bits))
    operators = used_operators(config)
    sites = offered_sites(network, bounds, operators)
    if not sites:
        kinds = ", ".join(operator.kind for operator in operators)
        raise ConfigError(
            f"the operators {kinds} find nothing to compress in this network: name others with --operators."
        )
    resources = cost_model(network, sites, operators)
    full = [site.sizes[-1] for site in sites]
    original = {name: float(values[0]) for name, values in resources.costs([full]).items()}
    exact = asked != BudgetConfig() or config.budget.latency is None
    limits = Budget.from_config(asked).limits(original) if exact else {}
    _check_proof(unproved_savings(sites, resources, operators) if foreign(operators) else {}, limits)
    others = asked.replace(branches=None) != BudgetConfig()
    sizes = [site.sizes for site in sites]
    if latency is None and predicted is not None:
        return Space(sites, CorrectedCosts(resources, predicted.non_decreasing(sizes), 1.0), limits)
    if latency is None:
        return Space(sites, resources, limits)
    if not others:
        worthwhile = effective_widths(latency.prediction.predict, sizes)
        sites = tuple(site.only(sizes) for site, sizes in zip(sites, worthwhile, strict=True))
    costs = latency.costs(resources, [site.sizes for site in sites])
    return Space(sites, costs, {**limits, "latency": latency.limit_ms})


def _check_proof(unproved: Mapping[str, Collection[str]], limits: Collection[str]) -> None:
    """Raise ConfigError if an operator saves a limited resource in a way that model.onnx does not show."""
    for kind, resources in unproved.items():
        for resource in sorted(set(resources) & set(limits)):
            raise ConfigError(
                f"--{FIELDS[resource]} cannot be limited with the operator {kind}: model.onnx does not show the "
                f"{UNITS[resource]} that it saves. Limit something else, or leave {kind} out of --operators."
            )


def unproved_resources(config: Config, space: Space) -> list[str]:
    """Resources whose savings are not all visible in the exported network."""
    operators = used_operators(config)
    found = unproved_savings(space.sites, space.model, operators) if foreign(operators) else {}
    return sorted(set().union(*found.values()))


def check_operators(config: Config) -> None:
    """Raise ConfigError for unknown operators, and for options that they do not support."""
    operators = used_operators(config)
    kinds, others = [operator.kind for operator in operators], beyond_widths(operators)
    budget, search = config.budget, config.search
    if budget.branches is not None and "branches" not in kinds:
        raise ConfigError("--branches limits residual branches: add branches to --operators.")
    _check_bits(config, kinds)
    if not others:
        return
    asked = {
        "--latency": budget.latency is not None,
        "--latency-aware": search.latency_aware,
        f"--reward {search.reward}": bool(getattr(load_reward(search.reward), "needs_latency", False)),
        f"--criterion-scope {search.criterion_scope}": search.criterion_scope != "site",
    }
    for option in (option for option, given in asked.items() if given):
        raise ConfigError(
            f"{option} supports channels and branches only: leave it out, or {', '.join(others)} out of --operators."
        )


def _check_bits(config: Config, kinds: Collection[str]) -> None:
    """Raise ConfigError for unknown bits, and for options that the operator bits does not support."""
    asked = unless_auto(config.search.bits)
    if "bits" not in kinds:
        if asked is not None:
            raise ConfigError("--bits gives the bits of weights: add bits to --operators.")
        return
    unknown = [bits for bits in asked or () if bits not in OPSET]
    if unknown or asked == ():
        able = " or ".join(map(str, OPSET))
        raise ConfigError(f"--bits {', '.join(map(str, unknown))} is unknown: weights may have {able} bits.")
    if config.int8:
        raise ConfigError(
            "--int8 cannot be combined with the operator bits, whose model.onnx is quantised already: leave one out."
        )


def used_operators(config: Config) -> Operators:
    """The operators that a search uses. Raises ConfigError."""
    named = config.search.operator_names
    if named is None:
        named = ("channels", "branches") if offers_branches(config) else ("channels",)
    return load_operators(named)


def offers_branches(config: Config) -> bool:
    """Whether residual branches may be removed, which saves more time than narrowing them.

    Without ``--operators``, they may if branches or latency are limited, or if the search is latency-aware. A user's
    latency model does not support removed branches.
    """
    operators = config.search.operator_names
    if operators is not None:
        return "branches" in operators
    budget, named, least = config.budget, config.search.latency_model, config.search.min_keep
    if budget.branches is not None or (budget.latency is None and not config.search.latency_aware):
        return budget.branches is not None or least == 0
    return least in (AUTO, 0) and (named is None or is_profile(named))
