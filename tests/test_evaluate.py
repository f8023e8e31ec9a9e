"""Evaluating policies: one does not influence the next, and reconstruction improves scores."""

import gc
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from amc.evaluation import racer
from amc.evaluation.evaluator import Evaluator
from amc.evaluation.score import Race, Score
from amc.evaluation.settings import OBJECTIVES, EvaluationSettings, Reconstruction
from amc.reconstruction.sequential import Effort, SequentialReconstruction
from amc.task import evaluate
from amc.task.splits import sample

LOSS = EvaluationSettings("loss")
HALF, QUARTER = (8, 8, 16, 16, 32, 32), (4, 4, 8, 8, 16, 16)


def test_the_whole_network_is_the_original(digits):
    task, graph, orders, moments = digits
    full = tuple(site.channels for site in graph.sites)
    score = Evaluator(task, graph, orders, moments, LOSS).score(full)
    assert (score.loss, score.metric) == pytest.approx(evaluate(task.model, task, task.splits.search), rel=1e-5)


@pytest.mark.parametrize("recalibrate", [False, True])
def test_policies_leave_nothing_behind(digits, recalibrate):
    settings = replace(LOSS, recalibrate=recalibrate)
    evaluator = Evaluator(*digits, settings)
    first = evaluator.score(HALF)
    evaluator.score(QUARTER)
    evaluator.with_settings(replace(LOSS, recalibrate=not recalibrate)).score(HALF)
    assert evaluator.score(HALF) == first == Evaluator(*digits, settings).score(HALF)


def test_no_tensors_are_kept_of_the_policies_that_were_evaluated(digits):
    """But solutions, of which there is one for a layer and its width, and the losses of the last few policies."""
    evaluator = Evaluator(*digits, LOSS)
    policies = [tuple(width - cut for width in HALF) for cut in range(1, 6)]
    others = [tuple(width - (cut + site) % 5 - 1 for site, width in enumerate(HALF)) for cut in range(1, 6)]

    def kept(some: list[tuple[int, ...]]) -> int:
        for policy in some:
            evaluator.score(policy)
            evaluator.race(policy, some[0])
        evaluator.networks.forget()
        gc.collect()
        return sum(type(found) in (torch.Tensor, nn.Parameter) for found in gc.get_objects())

    kept(policies)
    assert kept(policies) == kept(others)


def test_evaluators_with_shared_networks_have_their_own_site_errors(digits):
    """The objective of an evaluator never changes, so its tables of site errors belong to one objective."""
    by_loss = Evaluator(*digits, LOSS)
    assert by_loss.site_error(0, 8) == pytest.approx(0.0138, abs=1e-4)
    by_logits = by_loss.with_settings(EvaluationSettings("logit_mse"))
    assert by_logits.site_error(0, 8) == pytest.approx(0.3246, abs=1e-4)
    assert by_loss.site_error(0, 8) == pytest.approx(0.0138, abs=1e-4)
    assert by_loss.with_settings(replace(LOSS, recalibrate=True)).site_error(0, 8) == by_loss.site_error(0, 8)
    with pytest.raises(FrozenInstanceError):
        by_loss.settings.objective = "logit_mse"


def test_reconstruction_helps(digits):
    evaluator = Evaluator(*digits, LOSS)
    solved = evaluator.score(HALF)
    plain = evaluator.with_settings(replace(LOSS, reconstruction=Reconstruction(solve=False))).score(HALF)
    assert solved == evaluator.score(HALF)
    assert solved.loss < 0.5 * plain.loss
    assert solved.metric > plain.metric


def test_a_failing_evaluation_leaves_batchnorm_in_evaluation_mode(digits, monkeypatch):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments, replace(LOSS, recalibrate=True))
    first = evaluator.score(HALF)
    with monkeypatch.context() as patched:
        patched.setattr(nn.functional, "relu", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluator.score(HALF)
    assert evaluator.score(HALF) == first


def test_site_errors_grow_as_sites_shrink(digits):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments, LOSS)
    for index, site in enumerate(graph.sites):
        errors = [evaluator.site_error(index, width) for width in range(site.channels, 0, -max(1, site.channels // 8))]
        assert errors[0] == pytest.approx(0, abs=1e-6)
        assert all(b > a - 1e-6 for a, b in pairwise(errors))
        assert errors[-1] <= len(site.consumers) + 1e-6


def test_a_pruned_network_is_its_own_and_trainable(digits):
    task, graph, orders, moments = digits
    evaluator = Evaluator(task, graph, orders, moments, LOSS)
    mine = evaluator.pruned(HALF)
    before = [p.clone() for p in mine.parameters()]
    evaluator.score(QUARTER)
    assert all(p.requires_grad and torch.equal(p, b) for p, b in zip(mine.parameters(), before, strict=True))
    assert {m.out_channels for m in mine.modules() if isinstance(m, nn.Conv2d)} == {8, 16, 32}
    assert [np.sort(k).tolist() for k in evaluator.kept(HALF)] == [k.tolist() for k in evaluator.kept(HALF)]


def test_a_network_that_was_scored_is_not_solved_again_to_be_trained(digits, monkeypatch):
    task, graph, orders, moments = digits
    settings = EvaluationSettings("loss", reconstruction=Reconstruction(final=Effort(samples=64, rows=64, rounds=1)))
    evaluator = Evaluator(task, graph, orders, moments, settings)
    wanted = Evaluator(task, graph, orders, moments, settings).pruned(HALF).state_dict()
    solve, solved = SequentialReconstruction.__call__, list[object]()
    monkeypatch.setattr(
        SequentialReconstruction, "__call__", lambda *args, **more: solved.append(args) or solve(*args, **more)
    )
    evaluator.refined_score(HALF)
    evaluator.refined_score(QUARTER)
    for _ in range(2):  # what is done to one does not change the next
        pruned = evaluator.pruned(HALF)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in pruned.state_dict().items())
        with torch.no_grad():
            next(pruned.parameters()).zero_()
    assert len(solved) == 2


def test_the_objective_is_the_mean_squared_difference_of_logits(digits):
    task = digits[0]
    by_loss = Evaluator(*digits, LOSS).score(HALF)
    evaluator = Evaluator(*digits, EvaluationSettings("logit_mse"))
    by_logits = evaluator.score(HALF)
    images, _ = task.splits.search.fetch(torch.arange(len(task.splits.search)))
    with torch.no_grad():
        difference = evaluator.network(HALF)(images) - task.model(images)
    assert by_logits.loss == pytest.approx(float((difference**2).mean()), rel=1e-4)
    assert by_logits.metric == by_loss.metric
    assert evaluator.score(evaluator.networks.full).loss == pytest.approx(0, abs=1e-6)


def test_logits_per_pixel_are_not_stored(digits):
    """They would take too much memory, so the objective is the loss."""
    task, graph, orders, moments = digits
    dense = replace(task.objective, logits=lambda outputs: outputs[:, :, None].expand(-1, -1, 64))
    by_loss = Evaluator(task, graph, orders, moments, LOSS).score(HALF)
    evaluator = Evaluator(replace(task, objective=dense), graph, orders, moments, EvaluationSettings("logit_mse"))
    assert evaluator.score(HALF) == by_loss
    assert "original_logits" not in vars(evaluator.samples)


POOR = (4, 4, 7, 7, 13, 13)
NEAR = (8, 8, 16, 16, 33, 32)


class TestRace:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_clear_races_end_early(self, digits, objective):
        evaluator = Evaluator(*digits, EvaluationSettings(objective))
        good, poor = evaluator.score(HALF), evaluator.score(POOR)
        lost, won = evaluator.race(POOR, HALF), evaluator.race(HALF, POOR)
        assert (lost.rejected, won.rejected) == (True, False)
        assert max(lost.share, won.share) < 1
        assert lost.score(good).loss == pytest.approx(poor.loss, rel=0.2)
        assert won.score(poor).loss == pytest.approx(good.loss, abs=0.2 * poor.loss)

    def test_unclear_races_read_half_of_the_samples(self, digits, monkeypatch):
        monkeypatch.setattr(racer, "BLOCK", 25)
        task, graph, orders, moments = digits
        evaluator = Evaluator(task, graph, orders, moments, LOSS)
        near, half = evaluator.race(NEAR, HALF), evaluator.race(HALF, NEAR)
        count = len(task.splits.search)
        assert near.share * count == half.share * count == pytest.approx(-(-count // 2))
        assert (near.rejected, half.rejected) == (False, True)
        assert (near.loss, near.incumbent_loss) == (half.incumbent_loss, half.loss)
        assert near.loss < half.loss

    def test_small_splits_are_read_completely(self, digits):
        task, graph, orders, moments = digits
        few = replace(task, splits=replace(task.splits, search=sample(task.splits.search, 200)))
        evaluator = Evaluator(few, graph, orders, moments, LOSS)
        half, near = evaluator.score(HALF), evaluator.score(NEAR)
        found = evaluator.race(NEAR, HALF).score(half)
        assert (found.share, found.rejected) == (1, False)
        assert (found.loss, found.metric) == pytest.approx((near.loss, near.metric))

    def test_remembered_readings_do_not_change_scores(self, digits, monkeypatch):
        """The winner of a race that ended early is the next incumbent, and is evaluated further."""
        monkeypatch.setattr(racer, "BLOCK", 25)
        task, graph, orders, moments = digits
        first, second, third = (Evaluator(task, graph, orders, moments, LOSS) for _ in range(3))
        assert first.race(HALF, POOR).share < first.race(NEAR, HALF).share
        second.score(HALF)
        for policy in (POOR, NEAR, QUARTER):
            races = [evaluator.race(policy, HALF) for evaluator in (first, second, third)]
            assert races[0] == races[1] == races[2]

    @pytest.mark.parametrize(
        "settings",
        [replace(LOSS, recalibrate=True), replace(LOSS, dtype="bfloat16"), EvaluationSettings("logit_mse")],
        ids=str,
    )
    def test_the_incumbent_is_evaluated_like_the_policy(self, digits, settings):
        first, second = (Evaluator(*digits, settings) for _ in range(2))
        if settings.objective == "loss":
            first.with_settings(LOSS).score(HALF)
        assert first.race(NEAR, HALF) == second.race(NEAR, HALF)

    def test_the_number_of_images_does_not_depend_on_memory(self, digits):
        task, graph, orders, moments = digits
        shares = [
            Evaluator(replace(task, batch=b), graph, orders, moments, LOSS).race(POOR, HALF).share for b in (1, 250)
        ]
        assert shares == [250 / len(task.splits.search)] * 2

    def test_a_score_is_relative_to_the_incumbents(self):
        assert Race(0.25, 0.75, 0.5, 0.5, 0.5, rejected=False).score(Score(0.25, 0.5)) == Score(0.125, 0.75, 0.5)
        assert Race(0.0, 1.0, 0.5, 0.25, 0.5, rejected=False).score(Score(0.25, 0.5)) == Score(0.0, 1.0, 0.5)
        assert Race(-0.5, 0.5, 0.5, 0.5, 0.5, rejected=False).score(Score(0.25, 0.5)) == Score(-0.75, 0.5, 0.5)

    def test_a_rejected_policy_is_no_better_than_its_incumbent(self):
        lost = Race(0.25, 0.75, 0.5, 0.5, 0.5, rejected=True).score(Score(0.5, 0.9))
        assert lost == Score(0.5, 0.9, 0.5, rejected=True)


def test_bfloat16_scores_nearly_the_same(digits):
    evaluator = Evaluator(*digits, LOSS)
    half = evaluator.with_settings(replace(LOSS, dtype="bfloat16")).score(HALF)
    assert half.loss == pytest.approx(evaluator.score(HALF).loss, rel=0.02)
    assert evaluator.faster_dtype() == "float32", "it is too small for the choice to matter"
