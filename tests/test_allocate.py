"""The allocator is exact: no policy within the budget has a smaller sum of errors."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.envs.toy import toy_problem
from amc.errors import BudgetError
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem
from amc.search import load_searcher
from amc.search.allocate import decode, error_tables, fast_decoder, front, greedy_decode
from amc.search.exact import solve, solve_front, solve_programme
from amc.search.terms import term_costs
from amc.space.budget import Space
from amc.space.sites import numeric_sites


class LayerCosts:
    """Layers between two sites: ``Σ m[s, t] · w_s · w_t + Σ m[s, s] · w_s``, and peak memory, which is not a sum."""

    def __init__(self, macs, params):
        self.macs, self.params = (np.asarray(m, np.float64) for m in (macs, params))

    def costs(self, choices):
        w = np.atleast_2d(np.asarray(choices, np.float64))
        found = {}
        for name, m in (("macs", self.macs), ("params", self.params)):
            alone, both = np.diag(m), np.triu(m, 1)
            found[name] = 7 + w @ alone + np.einsum("bs,st,bt->b", w, both, w)
        found["memory"] = np.max(w[:, :-1] + w[:, 1:], axis=1) if w.shape[1] > 1 else w[:, 0]
        return found


@st.composite
def cases(draw, limits=("macs",)):
    """Chains, stars and random graphs of up to five sites, with errors that decrease with the setting."""
    sites = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    widths = tuple(
        tuple(sorted(rng.choice(np.arange(1, 12), rng.integers(1, 5), replace=False).tolist())) for _ in range(sites)
    )
    matrices = [rng.integers(0, 20, (sites, sites)) * (rng.random((sites, sites)) < 0.5) for _ in range(2)]
    model = LayerCosts(*matrices)
    least, most = (model.costs([[w[i] for w in widths]]) for i in (0, -1))
    shares = rng.uniform(0, 1, len(limits))
    bounds = {n: float(least[n][0] + s * (most[n][0] - least[n][0])) for n, s in zip(limits, shares, strict=True)}
    tables = [np.sort(rng.random(len(w)))[::-1] - (rng.random() < 0.3) for w in widths]
    return Space(numeric_sites(list(map(str, range(sites))), widths), model, bounds), tables


def total(space: Space, tables, choice) -> float:
    return float(sum(t[s.index(w)] for t, s, w in zip(tables, space.settings, choice, strict=True)))


def least(space: Space, tables) -> float:
    everything = np.array(list(product(*space.settings)))
    return min(total(space, tables, c) for c in everything[space.fits(everything)].tolist())


@settings(max_examples=60, deadline=None)
@given(cases())
def test_allocation_under_one_limit_is_optimal(case):
    space, tables = case
    choice = decode(space, tables, np.ones(len(tables)))
    assert space.fits([choice])[0]
    assert total(space, tables, choice) == pytest.approx(least(space, tables), abs=1e-9)
    assert fast_decoder(space, tables)(np.ones(len(tables))) == choice


@settings(max_examples=25, deadline=None)
@given(cases(limits=("macs", "params")))
def test_allocation_under_two_limits_is_optimal(case):
    space, tables = case
    choice = decode(space, tables, np.ones(len(tables)))
    assert space.fits([choice])[0]
    assert total(space, tables, choice) == pytest.approx(least(space, tables), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_the_integer_programme_agrees_with_dynamic_programming(case):
    space, tables = case
    costs, limit = term_costs(space, "macs"), space.limits["macs"]
    one, other = (
        solve_front(space, costs, tables, limit).within(limit),
        solve_programme(space, [costs], tables, [limit]),
    )
    assert total(space, tables, one) == pytest.approx(total(space, tables, other), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(cases(limits=("memory", "macs")))
def test_greedy_allocation_meets_limits_on_costs_that_are_not_sums(case):
    space, tables = case
    assert space.fits([decode(space, tables, np.ones(len(tables)))])[0]


@settings(max_examples=20, deadline=None)
@given(cases())
def test_a_front_is_as_good_as_every_budget_alone(case):
    space, tables = case
    least_share = space.costs(space.smallest)["macs"] / space.limits["macs"]
    shares = np.linspace(least_share + 1e-9, 1.0, 4)
    for share, choice in zip(shares, front(space, tables, shares), strict=True):
        tight = Space(space.sites, space.model, {"macs": share * space.limits["macs"]})
        assert tight.fits([choice])[0]
        assert total(space, tables, choice) == pytest.approx(least(tight, tables), abs=1e-9)


def test_a_budget_that_cannot_be_reached_is_told():
    problem, _ = toy_problem()
    with pytest.raises(BudgetError, match="cannot be reached"):
        front(problem.space, error_tables(problem), [1.0, 0.001])


def test_costs_of_a_real_network_are_decomposed_exactly():
    import torch

    from amc.graph.build import build_graph
    from amc.space.resources import ResourceModel
    from amc.task import load_model

    model = load_model("resnet8", "random", 1, 10, "digits").eval()
    graph = build_graph(model, torch.zeros(1, 1, 8, 8))
    resources = ResourceModel(graph, model)
    full = resources.cost([s.channels for s in graph.sites])
    widths = tuple(tuple(range(2, s.channels + 1, 2)) for s in graph.sites)
    space = Space(numeric_sites([s.name for s in graph.sites], widths), resources, {"macs": full["macs"] / 2})
    rng = np.random.default_rng(1)
    for resource in ("macs", "params"):
        costs = term_costs(space, resource)
        for _ in range(20):
            places = [int(rng.integers(0, len(w))) for w in widths]
            assert costs(places) == space.costs([w[k] for w, k in zip(widths, places, strict=True)])[resource]
    tables = [np.sort(rng.random(len(w)))[::-1] for w in widths]
    ours, steps = decode(space, tables, np.ones(len(widths))), greedy_decode(space, tables)
    assert total(space, tables, ours) <= total(space, tables, steps)


def test_the_allocator_finds_the_best_policy_where_errors_add_up():
    """The toy's loss is exactly the sum of its sites' errors."""
    for seed in range(3):
        problem, best = toy_problem(seed=seed)
        load_searcher("allocate")(problem, 1, 0)
        assert problem.best(1)[0].metric == pytest.approx(best)


def test_error_tables_are_scaled_to_a_total_of_1():
    """Small errors, as of a network that is never wrong, give the same tables."""
    problem, _ = toy_problem()
    backend = FunctionBackend(problem.backend.score, lambda *at: 1e-12 * problem.site_error(*at))
    tiny = Problem(problem.space, problem.features, backend)
    tables, small = error_tables(problem), error_tables(tiny)
    assert sum(table[0] for table in tables) == pytest.approx(1)
    for one, other in zip(tables, small, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
        assert (np.diff(one) <= 0).all()


@pytest.mark.parametrize("kinds", [("channels", "bits"), ("channels", "branches", "bits")])
def test_widths_and_bits_of_one_tensor_are_terms_of_three_sites(kinds):
    """The integer program and dynamic programming find the same optimum, which is no worse than greedy steps."""
    from amc.operators.compose import cost_model, offered_sites
    from amc.operators.operator import SettingBounds
    from amc.operators.registry import load_operators
    from amc.testing import example_network

    network, operators = example_network()[0], load_operators(kinds)
    sites = offered_sites(network, SettingBounds(min_keep=0.5), operators)
    model = cost_model(network, sites, operators)
    whole = float(model.costs([[site.sizes[-1] for site in sites]])["size"][0])
    space = Space(sites, model, {"size": 0.12 * whole})
    costs = term_costs(space, "size")
    assert costs is not None
    assert {len(connected) for connected in costs.terms} == {2, 3}
    rng = np.random.default_rng(1)
    tables = [np.append(np.sort(rng.random(n - 1) ** 3)[::-1], 0) for n in space.lengths]
    error = lambda choice: sum(t[p] for t, p in zip(tables, space.positions(choice), strict=True))  # noqa: E731
    found = solve(space, costs, tables, space.limits["size"])
    assert found is not None
    assert error(found) == pytest.approx(error(solve_programme(space, [costs], tables, list(space.limits.values()))))
    assert error(found) <= error(greedy_decode(space, tables)) + 1e-12
