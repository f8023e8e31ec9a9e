"""Evaluating a policy: nothing of one policy is left in the next, and reconstruction is worth it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import amc.evaluation.evaluator
from amc.evaluation.evaluator import Evaluator, Race, Score
from amc.task import evaluate
from amc.task.data import sample

HALF, QUARTER = (8, 8, 16, 16, 32, 32), (4, 4, 8, 8, 16, 16)


def test_the_whole_network_is_the_original(digits):
    task, graph, orders, moments = digits
    full = tuple(site.channels for site in graph.sites)
    score = Evaluator(task, graph, orders, moments)(full)
    assert (score.loss, score.metric) == pytest.approx(evaluate(task.model, task, task.splits.search), rel=1e-5)


@pytest.mark.parametrize("recalibrate", [False, True])
def test_policies_leave_nothing_behind(digits, recalibrate):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments, recalibrate=recalibrate)
    first = evaluator(HALF)
    evaluator(QUARTER)
    evaluator.recalibrate = not recalibrate
    evaluator(HALF)
    evaluator.recalibrate = recalibrate
    assert evaluator(HALF) == first == Evaluator(task, graph, orders, moments, recalibrate=recalibrate)(HALF)


def test_reconstruction_helps(digits):
    task, graph, orders, moments = digits
    plain = Evaluator(task, graph, orders, moments, reconstruct=False)(HALF)
    solved = Evaluator(task, graph, orders, moments)(HALF)
    assert solved.loss < 0.5 * plain.loss
    assert solved.metric > plain.metric


def test_a_failing_evaluation_leaves_batchnorm_in_evaluation_mode(digits, monkeypatch):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments, recalibrate=True)
    first = evaluator(HALF)
    with monkeypatch.context() as patched:
        patched.setattr(nn.functional, "relu", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluator(HALF)
    assert evaluator(HALF) == first


def test_site_errors_grow_as_sites_shrink(digits):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments)
    for index, site in enumerate(graph.sites):
        errors = [evaluator.error(index, width) for width in range(site.channels, 0, -max(1, site.channels // 8))]
        assert errors[0] == pytest.approx(0, abs=1e-6)
        assert all(b > a - 1e-6 for a, b in pairwise(errors))
        assert errors[-1] <= len(site.consumers) + 1e-6


def test_a_pruned_network_is_its_own_and_trainable(digits):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments)
    mine = evaluator.pruned(HALF)
    before = [p.clone() for p in mine.parameters()]
    evaluator(QUARTER)
    assert all(p.requires_grad and torch.equal(p, b) for p, b in zip(mine.parameters(), before, strict=True))
    assert {m.out_channels for m in mine.modules() if isinstance(m, nn.Conv2d)} == {8, 16, 32}
    assert [np.sort(k).tolist() for k in evaluator.kept(HALF)] == [k.tolist() for k in evaluator.kept(HALF)]


def test_judged_by_the_distance_of_logits(digits):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments)
    by_loss = evaluator(HALF)
    evaluator.judge = "distance"
    by_distance = evaluator(HALF)
    images, _ = task.splits.search.fetch(torch.arange(len(task.splits.search)))
    with torch.no_grad():
        apart = evaluator.network(HALF)(images) - task.model(images)
    assert by_distance.loss == pytest.approx(float((apart**2).mean()), rel=1e-4)
    assert by_distance.metric == by_loss.metric
    assert evaluator(tuple(site.channels for site in graph.sites)).loss == pytest.approx(0, abs=1e-6)


def test_logits_of_every_pixel_are_not_held(digits):
    """Nothing is remembered that grows with images times pixels: the loss judges."""
    task, graph, orders, moments = digits
    dense = replace(task.objective, logits=lambda outputs: outputs[:, :, None].expand(-1, -1, 64))
    by_loss = Evaluator(task, graph, orders, moments)(HALF)
    evaluator = Evaluator(replace(task, objective=dense), graph, orders, moments)
    evaluator.judge = "distance"
    assert evaluator(HALF) == by_loss
    assert "_wanted" not in vars(evaluator)


POOR = (4, 4, 7, 7, 13, 13)
NEAR = (8, 8, 16, 16, 33, 32)


class TestRace:
    @pytest.mark.parametrize("judge", ["loss", "distance"])
    def test_what_is_clear_is_not_read_to_the_end(self, digits, judge):
        task, graph, orders, moments = digits
        evaluator = Evaluator(task, graph, orders, moments)
        evaluator.judge = judge
        good, poor = evaluator(HALF), evaluator(POOR)
        lost, won = evaluator.race(POOR, HALF), evaluator.race(HALF, POOR)
        assert (lost.lost, won.lost) == (True, False)
        assert max(lost.share, won.share) < 1
        assert lost.score(good).loss == pytest.approx(poor.loss, rel=0.2)
        assert won.score(poor).loss == pytest.approx(good.loss, abs=0.2 * poor.loss)

    def test_of_what_is_not_clear_half_is_read(self, digits, monkeypatch):
        monkeypatch.setattr(amc.evaluation.evaluator, "BLOCK", 25)
        task, graph, orders, moments = digits
        evaluator = Evaluator(task, graph, orders, moments)
        near, half = evaluator.race(NEAR, HALF), evaluator.race(HALF, NEAR)
        count = len(task.splits.search)
        assert near.share * count == half.share * count == pytest.approx(-(-count // 2))
        assert (near.lost, half.lost) == (False, True)
        assert (near.loss, near.rival_loss) == (half.rival_loss, half.loss)
        assert near.loss < half.loss

    def test_a_split_of_few_images_is_read_whole(self, digits):
        task, graph, orders, moments = digits
        few = replace(task, splits=replace(task.splits, search=sample(task.splits.search, 200)))
        evaluator = Evaluator(few, graph, orders, moments)
        half, near = evaluator(HALF), evaluator(NEAR)
        found = evaluator.race(NEAR, HALF).score(half)
        assert (found.share, found.lost) == (1, False)
        assert (found.loss, found.metric) == pytest.approx((near.loss, near.metric))

    def test_what_the_evaluator_remembers_does_not_matter(self, digits, monkeypatch):
        """A winner that was read in part goes on as the rival of the next."""
        monkeypatch.setattr(amc.evaluation.evaluator, "BLOCK", 25)
        task, graph, orders, moments = digits
        first, second, third = (Evaluator(task, graph, orders, moments) for _ in range(3))
        assert first.race(HALF, POOR).share < first.race(NEAR, HALF).share
        second(HALF)
        for policy in (POOR, NEAR, QUARTER):
            races = [evaluator.race(policy, HALF) for evaluator in (first, second, third)]
            assert races[0] == races[1] == races[2]

    @pytest.mark.parametrize(
        "setting", [{"recalibrate": True}, {"judge": "distance"}, {"precision": "bfloat16"}], ids=str
    )
    def test_a_rival_is_read_as_the_policy_is(self, digits, setting):
        task, graph, orders, moments = digits
        first, second = (Evaluator(task, graph, orders, moments) for _ in range(2))
        first(HALF)
        vars(first).update(setting)
        vars(second).update(setting)
        assert first.race(NEAR, HALF) == second.race(NEAR, HALF)

    def test_as_many_images_are_read_whatever_fits_into_memory(self, digits):
        task, graph, orders, moments = digits
        shares = [Evaluator(replace(task, batch=b), graph, orders, moments).race(POOR, HALF).share for b in (1, 250)]
        assert shares == [250 / len(task.splits.search)] * 2

    def test_a_score_is_in_proportion_to_the_rivals(self):
        assert Race(0.25, 0.75, 0.5, 0.5, 0.5, lost=False).score(Score(0.25, 0.5)) == Score(0.125, 0.75, 0.5)
        assert Race(0.0, 1.0, 0.5, 0.25, 0.5, lost=False).score(Score(0.25, 0.5)) == Score(0.0, 1.0, 0.5)
        assert Race(-0.5, 0.5, 0.5, 0.5, 0.5, lost=False).score(Score(0.25, 0.5)) == Score(-0.75, 0.5, 0.5)

    def test_who_has_lost_is_no_better_than_who_has_won(self):
        lost = Race(0.25, 0.75, 0.5, 0.5, 0.5, lost=True).score(Score(0.5, 0.9))
        assert lost == Score(0.5, 0.9, 0.5, lost=True)


def test_bfloat16_scores_nearly_the_same(digits):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments)
    full = evaluator(HALF)
    evaluator.precision = "bfloat16"
    half = evaluator(HALF)
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert evaluator.faster_precision() == "float32", "it is too small for the choice to matter"
