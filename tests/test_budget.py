"""Limits, and the wall: whatever is chosen among what is allowed ends within all limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import built
from numpy.typing import ArrayLike, NDArray

from amc.config import BudgetConfig
from amc.errors import BudgetError
from amc.operators.channels import legal_widths
from amc.space.budget import Budget, Space, parse_limit
from amc.space.sites import numeric_sites


@dataclass(frozen=True)
class ToyCosts:
    """Two costs that never fall: products of neighbours plus a price per setting, and the largest product."""

    pairs: tuple[int, ...]
    prices: tuple[int, ...]

    def costs(self, choices: ArrayLike) -> Mapping[str, NDArray[np.float64]]:
        w = np.atleast_2d(np.asarray(choices, np.int64))
        inner = np.concatenate([np.ones((len(w), 1), np.int64), w], 1)
        products = inner[:, 1:] * inner[:, :-1] * self.pairs
        return {
            "macs": (products.sum(1) + w @ np.array(self.prices)).astype(float),
            "memory": products.max(1).astype(float),
        }


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """One to four sites with one to four settings each, and one or two limits that can be met."""
    sites = draw(st.integers(1, 4))
    legal = tuple(tuple(sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))) for _ in range(sites))
    numbers = st.lists(st.integers(0, 5), min_size=sites, max_size=sites).map(tuple)
    costs = ToyCosts(draw(numbers), draw(numbers))
    least, most = (costs.costs([[s[end] for s in legal]]) for end in (0, -1))
    limits = {}
    for name in draw(st.sampled_from([("macs",), ("memory",), ("macs", "memory")])):
        share = draw(st.floats(0, 1))
        limits[name] = float(least[name][0] + share * (most[name][0] - least[name][0]))
    return Space(numeric_sites("abcd"[:sites], legal), costs, limits)


@given(spaces())
def test_allowed_is_what_brute_force_finds(space: Space) -> None:
    """A setting is allowed when some completion of the prefix with it meets all limits, and only then."""
    good = {c for c in product(*space.settings) if space.fits([c])[0]}
    for length in range(len(space.settings)):
        reachable = {c[: length + 1] for c in good}
        for prefix in {c[:length] for c in good}:
            expected = tuple(s for s in space.settings[length] if (*prefix, s) in reachable)
            assert space.allowed(prefix) == expected


@given(spaces(), st.randoms(use_true_random=False))
def test_any_episode_ends_within_the_limits(space: Space, random) -> None:
    choice: tuple[int, ...] = ()
    while len(choice) < len(space.settings):
        choice += (random.choice(space.allowed(choice)),)
    assert space.is_legal(choice)
    assert all(space.costs(choice)[name] <= limit for name, limit in space.limits.items())


def assert_maximal(space: Space, choice: tuple[int, ...]) -> None:
    """Legal, within the limits, and not to be widened by one step anywhere."""
    assert space.is_legal(choice)
    assert space.fits([choice])[0]
    for site, legal in enumerate(space.settings):
        place = legal.index(choice[site]) + 1
        if place < len(legal):
            assert not space.fits([(*choice[:site], legal[place], *choice[site + 1 :])])[0]


@given(spaces(), st.data())
def test_fit_is_maximal(space: Space, data: st.DataObject) -> None:
    shares = st.lists(st.floats(1e-3, 1), min_size=len(space.settings), max_size=len(space.settings))
    assert_maximal(space, space.fit(data.draw(shares)))


@given(spaces())
def test_without_pressure_everything_is_kept(space: Space) -> None:
    loose = Space(space.sites, space.model, space.costs(space.full))
    assert loose.fit([0.1] * len(space.settings)) == space.full
    assert loose.allowed(()) == space.settings[0]


@given(spaces())
def test_without_room_nothing_is_kept(space: Space) -> None:
    tight = Space(space.sites, space.model, space.costs(space.smallest))
    assert space.costs(tight.fit([1.0] * len(space.settings))) == space.costs(space.smallest)
    assert_maximal(tight, tight.fit([1.0] * len(space.settings)))


# On real networks


@cache
def real_space(case: str, *limits: tuple[str, float]) -> Space:
    _, _, graph, costs = built(case)
    legal = tuple(legal_widths(site.channels, 0.2) for site in graph.sites)
    full = costs.cost([s[-1] for s in legal])
    absolute = {name: share * full[name] for name, share in limits}
    return Space(numeric_sites([s.name for s in graph.sites], legal), costs, absolute)


REAL = [
    ("resnet20", ("macs", 0.3)),
    ("resnet56", ("macs", 0.5), ("memory", 0.8)),
    ("mobilenetv2", ("macs", 0.4), ("params", 0.3), ("memory", 0.7)),
]


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0])
@settings(max_examples=5)
@given(random=st.randoms(use_true_random=False))
def test_episodes_on_a_real_network_end_within_the_limits(case: tuple, random) -> None:
    space = real_space(*case)
    for pick in (random.choice, max, min):
        choice: tuple[int, ...] = ()
        while len(choice) < len(space.settings):
            choice += (pick(space.allowed(choice)),)
        assert space.is_legal(choice)
        assert all(space.costs(choice)[name] <= limit for name, limit in space.limits.items())


@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0])
def test_uniform_policy_on_a_real_network(case: tuple) -> None:
    space = real_space(*case)
    choice = space.fit(np.ones(len(space.settings)))
    assert_maximal(space, choice)
    assert choice != space.smallest


def test_uniform_policy_of_resnet20() -> None:
    """About 1/√2 of every width: half of the MACs."""
    space = real_space("resnet20", ("macs", 0.5))
    shares = np.array(space.fit(np.ones(12))) / np.array(space.full)
    assert shares.min() >= 0.5
    assert shares.max() <= 0.875
    assert space.costs(space.fit(np.ones(12)))["macs"] > 0.49 * 40_813_184


def test_is_legal() -> None:
    space = Space(numeric_sites("ab", ((1, 2), (3, 5))), ToyCosts((1, 1), (1, 1)), {"macs": 100})
    assert space.is_legal((2, 3))
    assert not space.is_legal((2, 4))
    assert not space.is_legal((2,))
    assert not space.is_legal((2, 3, 3))


def test_an_unreachable_budget_names_the_least_reachable() -> None:
    _, _, graph, costs = built("resnet20")
    legal = tuple(legal_widths(site.channels, 0.2) for site in graph.sites)
    least, full = (int(costs.cost([s[end] for s in legal])["macs"]) for end in (0, -1))
    names = tuple(site.name for site in graph.sites)
    told = f"the least possible is {least:,} MACs ({least / full:.3f} of the original), the limit {least - 1:,}"
    with pytest.raises(BudgetError, match=re.escape(told)):
        Space(numeric_sites(names, legal), costs, {"macs": least - 1, "params": 1e9})
    assert Space(numeric_sites(names, legal), costs, {"macs": least}).fit(np.ones(12)) == tuple(s[0] for s in legal)


def test_all_unreachable_limits_are_named() -> None:
    with pytest.raises(BudgetError, match=r"2 MACs .* the limit 1 MACs; the least possible is 1 bytes"):
        Space(numeric_sites("a", ((1, 2),)), ToyCosts((1,), (1,)), {"macs": 1, "memory": 0.5})


# Reading limits


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("flops", 0.5, 500.0),
        ("flops", "0.5", 500.0),
        ("flops", ".5", 500.0),
        ("flops", "50%", 500.0),
        ("flops", " 12.5 % ", 125.0),
        ("flops", 1, 1000.0),
        ("flops", "1", 1000.0),
        ("flops", "100%", 1000.0),
        ("flops", "1e-3", 1.0),
        ("flops", "20M", 20e6),
        ("flops", "20m", 20e6),
        ("flops", "0.02G", 20e6),
        ("flops", "0.5k", 500.0),
        ("flops", 20_000_000, 20e6),
        ("flops", 2e7, 20e6),
        ("flops", "2e7", 20e6),
        ("flops", 1e22, 1e22),
        ("flops", "1.5", 1.5),
        ("flops", "2T", 2e12),
        ("params", "100k", 100e3),
        ("size", "500KB", 500_000.0),
        ("size", "500 kb", 500_000.0),
        ("size", "1MiB", 1_048_576.0),
        ("size", "1KiB", 1024.0),
        ("size", "0.5MB", 500_000.0),
        ("size", "2GB", 2e9),
        ("size", "1GiB", 1_073_741_824.0),
        ("size", "700B", 700.0),
        ("size", "700", 700.0),
        ("memory", "0.25", 250.0),
        ("memory", "64KiB", 65536.0),
        ("latency", "0.5", 500.0),
        ("latency", "50%", 500.0),
        ("latency", "3ms", 3.0),
        ("latency", "1.5 MS", 1.5),
        ("latency", "800us", 0.8),
        ("latency", "2s", 2000.0),
    ],
)
def test_parse_limit(field: str, value: float | str, limit: float) -> None:
    assert parse_limit(field, value, 1000.0) == limit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("flops", v) for v in ("", " ", "half", "-1", "-0.5", "+1", "0", "0.0", 0, "0%", "0M", "101%", "150%")),
        *(("flops", v) for v in ("1,000", "1_000", "5.", "1.2.3", "5 5", "M", "%", "50%%", "20X", "20MB", "20KiB")),
        *(("flops", v) for v in ("nan", float("nan"), "inf", float("inf"), "1e999", True, "0x10", "٣", "2e", "1M\n5")),
        *(("latency", v) for v in ("3", 3, "1.5", "3M", "3kB", "0ms", "-3ms", "ms", "3 m s")),
        *(("size", v) for v in ("5M", "5K", "5MBit", "-5KB", "5KBB", "0KB", "110%")),
    ],
)
def test_bad_limits(field: str, value: float | str) -> None:
    with pytest.raises(BudgetError, match=f"^--{field} is ") as caught:
        parse_limit(field, value, 1000.0)
    assert "\n" not in str(caught.value)


def test_limits_of_a_budget() -> None:
    original = {"macs": 1000.0, "params": 50.0, "size": 4000.0, "memory": 80.0}
    assert Budget(flops=0.5, size="1KB").limits(original) == {"macs": 500.0, "size": 1000.0}
    config = BudgetConfig(params="50%", memory="64")
    assert Budget.from_config(config).limits(original) == {"params": 25.0, "memory": 64.0}


def test_a_budget_without_limits() -> None:
    with pytest.raises(BudgetError, match="no budget is given"):
        Budget().limits({"macs": 1.0})


def test_a_limit_on_what_nobody_tells() -> None:
    with pytest.raises(BudgetError, match="--size"):
        Budget(size="1KB").limits({"macs": 1.0})
