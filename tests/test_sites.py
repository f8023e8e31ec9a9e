"""Settings of any kind as positions in an ordered list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.space import PolicyGrid, SiteSettings, frozen_setting, numeric_sites, ranked_site
from amc.space.sites import Setting

GRID = PolicyGrid(
    (
        SiteSettings("conv1", (0, 4, 8), (0, 4, 8), ("channels", "branches")),
        ranked_site("conv1:weights", (("pattern", 2, 4), 0.75, "dense"), "weights"),
    )
)


def test_positions_sizes_and_shares_of_a_policy():
    choice = (4, ("pattern", 2, 4))
    assert GRID.positions(choice).tolist() == [1, 0]
    assert GRID.sizes_of(choice).tolist() == [4, 1]
    assert GRID.shares_of(choice).tolist() == [0.5, 1 / 3]
    assert GRID.sizes_at(np.array([[0, 1], [2, 2]])).tolist() == [[0, 2], [8, 3]]
    assert (GRID.smallest, GRID.full) == ((0, ("pattern", 2, 4)), (8, "dense"))
    assert GRID.names == ("conv1", "conv1:weights")
    assert GRID.operators == {"channels", "branches", "weights"}


@given(st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_a_policy_and_its_positions_say_the_same(positions: tuple[int, int]):
    choice = GRID.choice(positions)
    assert GRID.is_legal(choice)
    assert tuple(GRID.positions(choice)) == positions


@pytest.mark.parametrize("choice", [(4,), (4, "dense", 1), (5, "dense"), (4, "sparse"), (4, 2)])
def test_a_policy_that_is_none(choice: tuple[Setting, ...]):
    assert not GRID.is_legal(choice)


def test_settings_that_a_site_does_not_have_have_no_position():
    assert GRID.positions((8,)).tolist() == [2], "the first sites of a policy"
    with pytest.raises(ValueError, match=r"\(5, 'dense'\) has a setting that its site does not offer"):
        GRID.positions((5, "dense"))


@pytest.mark.parametrize(
    ("settings", "sizes", "told"),
    [
        ((), (), "needs distinct settings"),
        ((1, 1), (1, 2), "needs distinct settings"),
        ((1, 2), (1,), "one size per setting"),
        ((1, 2), (2, 1), "ascending"),
        ((1, 2), (-1, 1), "at least 0"),
        ((1,), (0,), "the original's above 0"),
    ],
)
def test_an_operators_mistake_is_named(settings: tuple[Setting, ...], sizes: tuple[int, ...], told: str):
    with pytest.raises(ValueError, match=told):
        SiteSettings("a", settings, sizes)


def test_sizes_are_widths_or_ranks():
    assert numeric_sites(["a", "b"], [(2, 4), (8,)])[0].sizes == (2, 4)
    assert ranked_site("a", ("x", "y", "z"), "letters").sizes == (1, 2, 3)


@pytest.mark.parametrize("value", [True, None, {"a": 1}, [1, None]])
def test_what_json_gives_is_a_setting_or_refused(value: object):
    with pytest.raises(ValueError, match="is not a setting"):
        frozen_setting(value)
