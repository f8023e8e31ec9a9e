"""Widths out of scores alone."""

import json

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from amc.cli import main
from amc.importance import ScopedPolicy, score, select
from amc.space.budget import Space
from amc.space.sites import numeric_sites


class Linear:
    """Every channel of a site has a price."""

    def __init__(self, *prices):
        self.prices = np.array(prices, np.float64)

    def costs(self, sizes):
        return {"macs": np.asarray(sizes) @ self.prices}


def space(limit: float) -> Space:
    """Four channels of price 1, two of price 4: 12 in all."""
    return Space(numeric_sites("ab", [(1, 2, 3, 4), (1, 2)]), Linear(1, 4), {"macs": limit})


SCORES = [torch.tensor([1.0, 4.0, 2.0, 3.0]), torch.tensor([1.0, 1.0])]
"""Divided by their norms: 0.18, 0.73, 0.37, 0.55 and twice 0.71; a MAC of a's is worth 2.2 to 8.8, of b's 2.1."""


def test_by_hand():
    assert select("global", SCORES, space(10)) == ScopedPolicy((2, 2))
    assert select("global", SCORES, space(11)) == ScopedPolicy((3, 2))
    assert select("flops", SCORES, space(10)) == ScopedPolicy((4, 1), ("b",))
    assert select("local", SCORES, space(6)).choice == (2, 1)


def test_no_site_is_lost():
    """Of b's channels nothing would be left, and it is said."""
    tiny = [SCORES[0], torch.tensor([1e-9, 1.0])]
    assert select("global", [SCORES[0], torch.zeros(2)], space(8)) == ScopedPolicy((4, 1), ("b",))
    assert select("global", tiny, space(8)) == ScopedPolicy((4, 1))


@given(
    st.lists(st.floats(0, 100), min_size=4, max_size=4),
    st.lists(st.floats(0, 100), min_size=2, max_size=2),
    st.floats(5, 12),
    st.sampled_from(["local", "global", "flops"]),
)
def test_the_budget_holds_and_more_important_channels_stay(first, second, limit, scope):
    own = space(limit)
    found = select(scope, [torch.tensor(first), torch.tensor(second)], own)
    assert own.is_legal(found.choice)
    assert own.fits([found.choice])[0]


def test_scale_of_a_sites_scores_does_not_matter():
    for scope in ("global", "flops"):
        assert select(scope, [1e6 * SCORES[0], SCORES[1]], space(10)) == select(scope, SCORES, space(10))


def test_scores_rank_as_orders_do(resnet8):
    from amc.importance import rank

    graph, model = resnet8
    for scores, order in zip(score("l1", graph, model, {}), rank("l1", graph, model, {}), strict=True):
        assert scores.argsort(descending=True, stable=True).tolist() == order.tolist()


def test_a_run_by_one_threshold(tmp_path, capsys):
    words = ["search", "--flops", "0.5", "--criterion-scope", "global", "--calibration-images", "64",
             "--search-images", "50", "--no-finetune", "--recalibrate", "off", "--threads", "1"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "bad")]) == 2
    assert "--criterion obs gives an order within a site" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    assert main([*words, "--criterion", "l2-mean", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert all(p["met"] for p in result["proof"])
    assert result["search"]["evaluations"] == 1
