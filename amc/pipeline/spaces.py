"""The policies that a run may choose, from its configuration: settings of every site, exact costs and limits."""

from __future__ import annotations

from amc.config import AUTO, BudgetConfig, Config, unless_auto
from amc.latency import is_profile
from amc.latency.constraint import LatencyConstraint
from amc.latency.prediction import CorrectedCosts, LatencyPrediction, effective_widths
from amc.operators.compose import cost_model, offered_sites
from amc.operators.operator import NetworkFacts, SettingBounds
from amc.operators.registry import OPERATORS, Operators
from amc.space.budget import Budget, Space


def make_space(
    config: Config,
    network: NetworkFacts,
    latency: LatencyConstraint | None = None,
    predicted: LatencyPrediction | None = None,
) -> Space:
    """What the operators offer under the configuration's budget. Raises BudgetError when it cannot be met.

    Without ``latency`` a limit on latency is left out. Where latency is all that is limited, only settings at which it
    changes are legal. ``predicted`` adds latency to the costs without a limit, for a search that takes it into account.
    """
    search, asked = config.search, config.budget.replace(latency=None)
    bounds = SettingBounds(search.least_share, unless_auto(search.channel_step))
    operators = used_operators(config, aware=predicted is not None)
    sites = offered_sites(network, bounds, operators)
    resources = cost_model(network, sites, operators)
    full = [site.sizes[-1] for site in sites]
    original = {name: float(values[0]) for name, values in resources.costs([full]).items()}
    exact = asked != BudgetConfig() or config.budget.latency is None
    limits = Budget.from_config(asked).limits(original) if exact else {}
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


def used_operators(config: Config, aware: bool = False) -> Operators:
    """The operators that a search uses; ``aware``: it takes latency into account without a limit."""
    unused = set() if branches_go(config, aware) else {"branches"}
    return [operator for operator in OPERATORS if operator.kind not in unused]


def branches_go(config: Config, aware: bool = False) -> bool:
    """Whether residual branches may be removed whole, which saves more time than narrow ones do.

    Latency models of the user's know nothing of that.
    """
    budget, named, least = config.budget, config.search.latency_model, config.search.min_keep
    if budget.branches is not None or (budget.latency is None and not aware):
        return budget.branches is not None or least == 0
    return least in (AUTO, 0) and (named is None or is_profile(named))
