"""Latency as a soft constraint in a search whose budget limits another resource."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.envs.toy import toy_problem
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.latency_weight import LatencyWeight
from amc.evaluation.problem import Problem
from amc.evaluation.reward import loss as loss_reward
from amc.evaluation.score import Race, Score
from amc.evaluation.settings import EvaluationSettings
from amc.search import load_searcher
from amc.search.allocate import error_tables
from amc.space.budget import Space
from amc.space.sites import numeric_sites


class SlowLast:
    """Two sites of equal MACs; a channel of the second takes three times as long."""

    def costs(self, sizes):
        w = np.atleast_2d(np.asarray(sizes, np.float64))
        return {"macs": w.sum(1), "latency": w @ np.array([1.0, 3.0])}


def alike(weight: LatencyWeight | None, limit: float = 12.0) -> Problem:
    """Both sites are equally important: without a weight, (4, 8) and (8, 4) are equally good."""
    space = Space(numeric_sites("ab", [(2, 4, 6, 8), (2, 4, 6, 8)]), SlowLast(), {"macs": limit})

    def error(site, setting):
        return (1 - setting / 8) ** 2

    def score(choice):
        loss = 0.1 + sum(error(site, setting) for site, setting in enumerate(choice))
        return Score(loss, 1 - loss / 4)

    toy, _ = toy_problem(sites=2)
    return Problem(space, toy.features, FunctionBackend(score, error), loss_reward, latency_weight=weight)


def test_the_loss_of_a_faster_policy_counts_less():
    problem = alike(LatencyWeight(2.0, 32.0))
    fast, slow = problem.evaluate((8, 4)), problem.evaluate((4, 8))
    assert fast.loss == slow.loss
    assert fast.reward == pytest.approx(-fast.loss * (20 / 32) ** 2)
    assert slow.reward == pytest.approx(-slow.loss * (28 / 32) ** 2)
    assert [e.choice for e in problem.best()] == [(8, 4), (4, 8)]


@pytest.mark.parametrize("name", ["hybrid", "spdy", "tpe", "amc", "evolution", "netadapt", "particles"])
def test_searchers_find_the_faster_of_two_that_are_as_good(name: str):
    problem = alike(LatencyWeight(1.0, 32.0))
    load_searcher(name)(problem, 16, 0)
    first, second = problem.best(1)[0].choice
    assert first >= second


@given(st.integers(0, 3), st.integers(0, 3), st.floats(0.1, 3))
def test_prices_are_the_slope_of_the_weighted_loss(first: int, second: int, exponent: float):
    """Near a policy, error · time ** exponent is linear; the prices are its coefficients."""
    problem, weight = alike(None, limit=16.0), LatencyWeight(exponent, 32.0)
    space = problem.space
    policy, error = space.choice([first, second]), 1e6  # changes of time are small beside it
    prices = weight.prices(space, policy, error)
    ms = space.costs(policy)["latency"]
    assert [min(p) for p in prices] == [0, 0]
    for site, per_channel in enumerate((1.0, 3.0)):
        settings = np.array(space.settings[site])
        assert prices[site] == pytest.approx(exponent * error * per_channel * (settings - 2) / ms)


def test_the_allocator_takes_latency_into_account():
    plain, weighted = error_tables(alike(None)), error_tables(alike(LatencyWeight(1.0, 32.0)))
    np.testing.assert_array_equal(plain[0], plain[1])
    extra = [w - p for w, p in zip(weighted, plain, strict=True)]
    assert extra[1] == pytest.approx(3 * extra[0])
    assert (np.diff(extra[0]) > 0).all()


def test_races_are_run_against_the_best_weighted_loss():
    raced = []

    def race(choice, incumbent, handicap):
        raced.append((choice, incumbent, handicap))
        return Race(1.05, 0.5, 1.0, 0.5, 0.5, rejected=False)  # a little worse, but faster

    space = alike(None).space
    toy, _ = toy_problem(sites=2)
    backend = FunctionBackend(lambda _: Score(1.0, 0.5), race=race)
    problem = Problem(space, toy.features, backend, loss_reward, latency_weight=LatencyWeight(1.0, 32.0))
    for choice in [(4, 8), (8, 4), (6, 6)]:
        problem.evaluate(choice)
    assert raced == [((8, 4), (4, 8), pytest.approx(20 / 28)), ((6, 6), (8, 4), pytest.approx(24 / 20))]


class TestHandicap:
    def test_the_handicap_decides_between_equals(self, digits):
        """Two policies with equal losses: the handicap decides which one wins."""
        evaluator = Evaluator(*digits, EvaluationSettings("logit_mse"))
        half, near = (8, 8, 16, 16, 32, 32), (8, 8, 16, 16, 33, 32)
        fast, slow = evaluator.race(near, half, 0.5), evaluator.race(near, half, 2.0)
        assert (fast.rejected, slow.rejected) == (False, True)
        assert max(fast.share, slow.share) < 1

    def test_a_rejected_policy_counts_no_less_than_the_incumbent(self):
        race = Race(0.9, 0.7, 1.0, 0.6, 0.5, rejected=True)
        found = race.score(Score(1.0, 0.6), handicap=2.0)
        assert found.loss == pytest.approx(0.9)  # and twice that is more than 1
        assert found.metric == pytest.approx(0.7)
        assert Race(0.3, 0.7, 1.0, 0.6, 0.5, rejected=True).score(Score(1.0, 0.6), 2.0).loss == pytest.approx(0.5)
