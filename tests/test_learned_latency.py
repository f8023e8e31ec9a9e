"""Latency as a budget: the learned model, the steps, the corrections and the promise. No test times anything."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.errors import LatencyError
from amc.latency.constraint import constraint_here
from amc.latency.correction import MARGIN, ROUNDS, RoundOver
from amc.latency.learned import Sample, errors, features, fit, learn, levels
from amc.latency.operators import Operator, names, operators, read_events
from amc.latency.prediction import CorrectedCosts, effective_widths
from amc.latency.profile import LEAST, LearnedModel, Profile, collect, policies
from amc.latency.reference import Reference, Timing, UsualTime
from amc.latency.verification import VerifiedLatency
from amc.operators.channels import legal_widths
from amc.runtime.journal import Journal
from amc.space.budget import Space
from amc.space.sites import numeric_sites

SETTINGS = tuple(legal_widths(c, 0.1) for c in (32, 64, 64, 128))
FULL = tuple(s[-1] for s in SETTINGS)
SITES = ("a", "b", "c", "d")


def chain() -> tuple[Operator, ...]:
    """Operators between neighbouring sites, and one that no site cuts."""
    unit = np.eye(4, dtype=np.int64)
    none = np.zeros(4, np.int64)
    ends = [
        ((none, 3), (unit[0], 0)),
        *(((unit[s], 0), (unit[s + 1], 0)) for s in range(3)),
        ((unit[3], 0), (none, 10)),
    ]
    return tuple(Operator(f"conv{n}", f"kind{n}", *end) for n, end in enumerate(ends))


def runtime(widths, block=16) -> np.ndarray:
    """Milliseconds of the operators on a device that computes channels in blocks."""
    w = np.array(widths)
    ends = [(op.inputs[0] @ w + op.inputs[1], op.outputs[0] @ w + op.outputs[1]) for op in chain()]
    return np.array([0.01 + 0.004 * -(-i // block) * -(-o // block) for i, o in ends])


def sampled(widths, block=16, noise=0.0, rng=None) -> Sample:
    own = runtime(widths, block)
    total = 0.02 + 1.1 * own.sum()
    full = 0.02 + 1.1 * runtime(FULL, block).sum()
    factor = np.exp(noise * rng.standard_normal()) if rng else 1.0
    return Sample(tuple(widths), factor * total / full, 1.0, ORIGINAL_MS, tuple(own.tolist()))


def samples(count: int, block: int = 16, noise: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(1)
    stream = policies(SETTINGS)
    return [sampled(next(stream), block, noise, rng) for _ in range(count)]


ORIGINAL_MS = 0.02 + 1.1 * float(runtime(FULL).sum())


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile({"cpu": "a"}, SITES, FULL, chain(), ORIGINAL_MS, tuple(samples(120, noise=0.005)))


@pytest.fixture(scope="module")
def model(profile) -> LearnedModel:
    return LearnedModel(profile)


class TestLearning:
    def test_unseen_policies_are_predicted(self, model):
        rng = np.random.default_rng(7)
        unseen = [[int(rng.choice(s)) for s in SETTINGS] for _ in range(100)]
        truth = [sampled(w).ratio * ORIGINAL_MS for w in unseen]
        found = errors(model.predict_all(unseen), truth)
        assert found.mean < 0.015
        assert found.worst < 0.05
        assert found.spearman > 0.99

    @pytest.mark.parametrize("block", [8, 16, 32])
    def test_the_block_is_found(self, block):
        assert learn(chain(), samples(80, block), 1.0)[1] == block

    def test_the_error_told_is_of_networks_that_were_not_learned_from(self, profile, model):
        noisy = replace(profile, samples=tuple(samples(120, noise=0.05)))
        assert LearnedModel(noisy).errors.mean > 2 * model.errors.mean
        assert 0.03 < LearnedModel(noisy).errors.mean < 0.06

    def test_one_and_many_agree(self, model):
        one = model.predict(dict(zip(SITES, FULL, strict=True)))
        assert one == model.predict_all([FULL, FULL])[1] == pytest.approx(ORIGINAL_MS, rel=0.02)

    def test_a_disturbed_session_hardly_counts(self, profile, model):
        noisy = [
            replace(s, ratio=1.4 * s.ratio, undisturbed=0.0) if n % 6 == 0 else s for n, s in enumerate(profile.samples)
        ]
        disturbed = LearnedModel(replace(profile, samples=tuple(noisy)))
        assert disturbed.predict_all([FULL]) == pytest.approx(model.predict_all([FULL]), rel=0.02)

    def test_only_the_usual_state_of_the_machine_counts(self, profile, model):
        slow = [replace(s, ratio=1.1 * s.ratio, original_ms=1.5 * ORIGINAL_MS) for s in profile.samples[:50]]
        both = LearnedModel(replace(profile, samples=(*slow, *profile.samples[50:])))
        assert both.errors.count == 70
        assert both.predict_all([FULL]) == pytest.approx(model.predict_all([FULL]), rel=0.01)

    def test_what_was_disturbed_may_be_all_that_is_known_of_the_original(self, profile):
        whole = [replace(s, undisturbed=float(min(np.array(s.widths) < FULL))) for s in profile.samples]
        model = LearnedModel(replace(profile, samples=tuple(whole)))
        assert model.errors.count < 120
        assert model.predict_all([FULL]) == pytest.approx(ORIGINAL_MS, rel=0.1)

    def test_features_know_blocks(self):
        at = features(np.array([17, 20, 32]), np.array([16, 16, 16]), 16)
        assert (at[1] == at[2]).all()
        assert at[0, 10] == 1  # 17 is no multiple of 4

    def test_levels_end_with_the_most(self):
        assert levels(3).tolist() == [1, 2, 3]
        assert levels(70)[-3:].tolist() == [60, 64, 70]


class TestMonotone:
    @pytest.mark.parametrize("noise", [0.0, 0.2])
    def test_wider_never_costs_less(self, noise):
        rng = np.random.default_rng(3)
        shaken = [
            replace(s, operators=tuple((np.array(s.operators) * np.exp(noise * rng.standard_normal(5))).tolist()))
            for s in samples(60)
        ]
        own = tuple(s[::2] if s[-1] in s[::2] else (*s[::2], s[-1]) for s in SETTINGS)
        predict = fit(chain(), shaken, ORIGINAL_MS, 16, FULL).non_decreasing(own)
        rows = [[int(rng.choice(s)) for s in own] for _ in range(50)]
        for row in rows:
            for site, legal in enumerate(own):
                times = predict([[*row[:site], w, *row[site + 1 :]] for w in legal])
                assert (np.diff(times) >= -1e-12).all()

    @settings(max_examples=25)
    @given(share=st.floats(0.3, 1), random=st.randoms(use_true_random=False))
    def test_episodes_end_within_the_limit(self, model, share, random):
        legal = effective_widths(model.predict_all, SETTINGS)
        costs = CorrectedCosts(Nothing(), model.tables.non_decreasing(legal), 1.0)
        least, most = (float(costs.costs([[s[end] for s in legal]])["latency"][0]) for end in (0, -1))
        space = Space(numeric_sites(SITES, legal), costs, {"latency": least + share * (most - least)})
        choice: tuple[int, ...] = ()
        while len(choice) < len(legal):
            choice += (random.choice(space.allowed(choice)),)
        assert space.fits([choice])[0]
        assert space.fits([space.fit([random.random() + 0.1 for _ in legal])])[0]


class Nothing:
    """No other costs."""

    def costs(self, choices):
        return {}


class TestSteps:
    def test_widths_within_a_block_are_not_legal(self):
        legal = effective_widths(lambda rows: np.array([runtime(w).sum() for w in np.atleast_2d(rows)]), SETTINGS)
        assert legal == ((16, 32), (16, 32, 48, 64), (16, 32, 48, 64), (16, 32, 48, 64, 80, 96, 112, 128))

    def test_the_original_stays_even_where_nothing_is_saved(self):
        assert effective_widths(lambda rows: np.ones(len(rows)), SETTINGS) == tuple((s[-1],) for s in SETTINGS)

    def test_a_width_that_is_slower_than_a_wider_one_is_not_legal(self):
        def slow(rows):
            w = np.atleast_2d(rows)[:, 0]
            return np.where(w == 20, 2.0, w / 32)

        legal = effective_widths(slow, [(8, 16, 20, 24, 32)])
        assert legal == ((8, 16, 24, 32),)


class TestProfile:
    def test_it_is_read_as_it_was_written(self, profile, model, tmp_path):
        profile.save(tmp_path / "p.json")
        again = Profile.load(tmp_path / "p.json")
        assert again.samples == profile.samples
        assert (LearnedModel(again).predict_all([FULL]) == model.predict_all([FULL])).all()

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.pop("key"),
            lambda d: d.update(format="amc-policy"),
            lambda d: d.update(original_ms=float("nan")),
            lambda d: d.update(original_ms="x"),
            lambda d: d["samples"][0].update(widths=[1]),
            lambda d: d["samples"][0].update(ratio=-1),
            lambda d: d["samples"][0].update(original_ms=0),
            lambda d: d["samples"][0].pop("original_ms"),
            lambda d: d["operators"][0].update(inputs=[[1], 0]),
            lambda d: d.update(samples=3),
            lambda d: d.update(full=[10**30, *d["full"][1:]]),
            lambda d: d.update(full=[0, *d["full"][1:]]),
            lambda d: d["samples"][0].update(widths=[10**30, *d["samples"][0]["widths"][1:]]),
            lambda d: d["samples"][0].update(widths=[-1, *d["samples"][0]["widths"][1:]]),
            lambda d: d["operators"][0].update(inputs=[[10**30] * len(d["sites"]), 0]),
            lambda d: d["operators"][0].update(outputs=[[1] * len(d["sites"]), 10**30]),
            lambda d: d["operators"][0].update(inputs=[[-1] * len(d["sites"]), 0]),
            lambda d: d["operators"][0].update(branch=10**30),
            lambda d: d["samples"][0].update(widths=[w + 1 for w in d["full"]]),
            lambda d: d["operators"][0].update(
                inputs=[[0] * len(d["sites"]), 2**20], outputs=[[0] * len(d["sites"]), 2**20]
            ),
        ],
    )
    def test_what_is_none_is_refused_in_one_line(self, profile, tmp_path, change):
        profile.save(tmp_path / "p.json")
        content = json.loads((tmp_path / "p.json").read_text())
        change(content)
        (tmp_path / "p.json").write_text(json.dumps(content))
        with pytest.raises(LatencyError, match="is not a latency profile"):
            Profile.load(tmp_path / "p.json")

    def test_one_of_another_version_says_so(self, profile, tmp_path):
        profile.save(tmp_path / "p.json")
        content = json.loads((tmp_path / "p.json").read_text())
        (tmp_path / "p.json").write_text(json.dumps({**content, "version": 1}))
        with pytest.raises(LatencyError, match=r"p.json: it has version 1, but this amc reads version 2\. Delete it"):
            Profile.load(tmp_path / "p.json")

    def test_an_interrupted_one_goes_on_where_it_was(self, profile):
        measured, kept = [], []
        empty = replace(profile, samples=())

        def measure(widths):
            measured.append(tuple(widths))
            if len(measured) == 10:
                raise KeyboardInterrupt
            return sampled(widths)

        with pytest.raises(KeyboardInterrupt):
            collect(empty, SETTINGS, measure, 1e9, kept.append, lambda *_: None)
        assert len(kept[-1].samples) == 9
        found = collect(kept[-1], SETTINGS, measure, 1e9, kept.append, lambda *_: None)
        stream = policies(SETTINGS)
        assert [s.widths for s in found.samples] == [next(stream) for _ in found.samples]
        assert len(set(measured)) <= len(found.samples)

    def test_it_ends_when_the_time_is_up_but_not_before_the_least(self, profile):
        now, rng = iter(range(10_000)), np.random.default_rng(0)
        found = collect(
            replace(profile, samples=()),
            SETTINGS,
            lambda widths: sampled(widths, noise=0.3, rng=rng),
            1.0,
            lambda p: None,
            lambda *_: None,
            clock=lambda: float(next(now)),
        )
        assert len(found.samples) == LEAST
        assert collect(found, SETTINGS, sampled, 1.0, lambda p: None, lambda *_: None) is found

    def test_a_noisy_machine_gets_twice_the_time(self, profile):
        now, rng = iter(range(10_000)), np.random.default_rng(0)
        found = collect(
            replace(profile, samples=()),
            SETTINGS,
            lambda widths: replace(sampled(widths, noise=0.3, rng=rng), undisturbed=0.0),
            40.0,
            lambda p: None,
            lambda *_: None,
            clock=lambda: float(next(now)),
        )
        assert len(found.samples) == 80


class Clockwork:
    """A fake device that is slower during some of its calls."""

    def __init__(self, noisy: range) -> None:
        self.calls, self.noisy = 0, noisy

    def time(self, usual_ms: float, slow_ms: float) -> float:
        self.calls += 1
        return slow_ms if self.calls in self.noisy else usual_ms


class TestReference:
    def test_noisy_rounds_do_not_count(self):
        device = Clockwork(range(60, 90))
        reference = Reference(lambda: device.time(1.0, 1.4))
        timing = reference.compare(lambda: device.time(0.5, 0.9), 20)
        assert timing.ratio == pytest.approx(0.5)
        assert timing.undisturbed == 1.0
        assert device.calls > 90

    def test_a_machine_that_becomes_noisy_is_taken_as_it_is(self):
        device, usual = Clockwork(range(100_000)), UsualTime()
        for _ in range(10_000):
            usual.add(1.0)
        reference = Reference(lambda: device.time(1.0, 1.5), usual)
        timing = reference.compare(lambda: device.time(0.5, 0.9), 20)
        assert timing.ratio == pytest.approx(0.6)
        assert timing.undisturbed < 0.25

    def test_a_rare_fast_moment_does_not_make_the_rest_noisy(self):
        device = Clockwork(range(20, 22))
        reference = Reference(lambda: device.time(1.0, 0.6))
        timing = reference.compare(lambda: device.time(0.5, 0.3), 20)
        assert (timing.ratio, timing.undisturbed, timing.original_ms) == (0.5, 1.0, 1.0)

    def test_a_machine_that_stays_slower_becomes_the_usual_one(self):
        device, usual = Clockwork(range(100_000)), UsualTime()
        for ms in [*[1.0] * 10_000, *[1.5] * 100_000]:
            usual.add(ms)
        timing = Reference(lambda: device.time(1.0, 1.5), usual).compare(lambda: device.time(0.5, 0.9), 20)
        assert (timing.ratio, timing.undisturbed, timing.original_ms) == (pytest.approx(0.6), 1.0, 1.5)


class FakeBench:
    """Networks take what the fake runtime says, times a factor that the model does not know."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.measured, self.undisturbed, self.spread = factor, 0, 1.0, 0.0
        self.full, self.original_ms = FULL, ORIGINAL_MS

    def timing(self, widths, sessions=1) -> Timing:
        self.measured += 1
        ratio = self.factor * (1 + self.spread * (self.measured % 2)) * sampled(widths).ratio
        return Timing(ratio, self.undisturbed, ORIGINAL_MS)


class TestConstraint:
    def limited(self, model, tmp_path, factor=1.1, journal=None, asked="0.6", evaluations=8):
        bench = FakeBench(factor)
        journal = journal or Journal(tmp_path / "journal.jsonl")
        return constraint_here(model, bench, asked, journal, evaluations), bench, journal

    def space(self, latency) -> Space:
        legal = effective_widths(latency.prediction.predict, SETTINGS)
        return Space(numeric_sites(SITES, legal), latency.costs(Nothing(), legal), {"latency": latency.limit_ms})

    def test_policies_near_the_budget_correct_the_model(self, model, tmp_path):
        latency, bench, journal = self.limited(model, tmp_path)
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        assert latency.now.scale == pytest.approx(1.1, rel=0.03)
        assert latency.round.number == 0
        before = bench.measured
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        assert bench.measured == before
        chosen = self.space(latency).fit(np.ones(4))
        assert latency.verifier.observe(chosen).ms <= latency.limit_ms
        journal.close()

    def test_what_was_measured_is_not_measured_again_after_an_interruption(self, model, tmp_path):
        latency, bench, journal = self.limited(model, tmp_path)
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        scale, done = latency.now.scale, bench.measured
        journal.close()
        with Journal(tmp_path / "journal.jsonl") as again:
            latency, bench, _ = self.limited(model, tmp_path, journal=again)
            latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
            assert (latency.now.scale, bench.measured) == (scale, 0)
            assert done > 0

    def test_a_round_ends_where_the_best_are_predicted_wrongly_and_the_same_when_repeated(self, model, tmp_path):
        latency, bench, journal = self.limited(model, tmp_path, factor=1.0)
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        space, bench.factor = self.space(latency), 1.1
        best = [space.fit(shares) for shares in np.random.default_rng(5).uniform(0.3, 1, (8, 4))]

        def go(latency) -> int:
            for proposals in range(1, 9):
                try:
                    latency.check(space, proposals, lambda n=proposals: best[:n])
                except RoundOver:
                    return proposals
            return 9

        assert go(latency) == 4
        assert latency.now.scale == pytest.approx(1.1, rel=0.03)
        assert (latency.round.number, latency.round.evaluations) == (1, 4)
        assert not self.space(latency).fits([best[0]])[0]
        assert space.fits([best[0]])[0]  # a space does not change
        measured = bench.measured
        journal.close()
        lines = (tmp_path / "journal.jsonl").read_text().splitlines(keepends=True)
        assert json.loads(lines[-1])["kind"] == "correction"
        (tmp_path / "journal.jsonl").write_text("".join(lines[:-1]))  # it was interrupted just before
        with Journal(tmp_path / "journal.jsonl") as again:
            latency, bench, _ = self.limited(model, tmp_path, journal=again)
            assert (go(latency), bench.measured) == (4, 0)
            assert measured > 0
        assert (tmp_path / "journal.jsonl").read_text() == "".join(lines)

    def test_a_round_goes_on_where_predictions_are_right(self, model, tmp_path):
        latency, _, journal = self.limited(model, tmp_path)
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        space = self.space(latency)
        for proposals in range(1, 9):
            latency.check(space, proposals, lambda: [space.fit(np.ones(4))])
        assert latency.round.number == 0
        journal.close()

    @pytest.mark.parametrize(("spread", "factor"), [(0.5, 1.0), (0.02, 1.3)])
    def test_what_was_measured_on_a_noisy_machine_counts_where_it_agrees(self, model, tmp_path, spread, factor):
        latency, bench, journal = self.limited(model, tmp_path, factor=1.3)
        bench.undisturbed, bench.spread = 0.0, spread
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        assert latency.now.scale == pytest.approx((1 + MARGIN) * factor, rel=0.03)
        assert latency.keeps(self.space(latency).fit(np.ones(4)))
        journal.close()

    @pytest.mark.parametrize("factor", [0.4, 9.0])
    def test_a_model_that_is_far_off_is_refused(self, model, tmp_path, factor):
        latency, _, journal = self.limited(model, tmp_path, factor=factor)
        with pytest.raises(LatencyError, match="latency cannot be predicted: a network takes"):
            latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        assert latency.now.scale == 1.0
        journal.close()

    def test_a_round_that_finds_a_model_far_off_does_not_end_for_that(self, model, tmp_path):
        latency, bench, journal = self.limited(model, tmp_path, factor=1.0)
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        space, bench.factor = self.space(latency), 9.0
        latency.check(space, 2, lambda: [space.fit([1, 1, 1, 0.5])])
        assert latency.round.number == 0
        assert "more than can be trusted" in latency.search_again(space, [space.fit([1, 1, 1, 0.5])])
        journal.close()

    def test_slow_ones_are_left_out_and_all_slow_means_searching_again(self, model, tmp_path):
        latency, _, journal = self.limited(model, tmp_path, factor=1.1)
        space = self.space(latency)
        tight = space.fit(np.ones(4))  # fits by the uncorrected model only
        small = space.smallest
        assert latency.fast_enough([tight, small], 2, lambda *_: None) == [small]
        assert latency.now.scale == 1.0
        assert latency.fast_enough([tight], 1, lambda *_: None) == []
        assert latency.search_again(space, [tight]) is None
        assert latency.now.scale > 1.08
        assert not self.space(latency).fits([tight])[0]
        assert latency.closest([space.full, tight, small]) == small
        journal.close()

    def test_rounds_end(self, model, tmp_path):
        latency, _, journal = self.limited(model, tmp_path, asked="0.8")
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        missed = VerifiedLatency(0.5, 0.51, "measured")
        rounds = 1
        while latency.tighten(self.space(latency), missed) is None:
            rounds += 1
        assert rounds == ROUNDS
        assert latency.round.is_last
        assert "was run 4 times" in latency.tighten(self.space(latency), missed)
        assert not latency.round.checks
        journal.close()

    def test_no_round_is_begun_for_which_nothing_is_small_enough(self, model, tmp_path):
        latency, _, journal = self.limited(model, tmp_path, asked="0.3")
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        told = latency.tighten(self.space(latency), VerifiedLatency(0.5, 0.8, "measured"))
        assert "even the smallest network would take" in told
        journal.close()

    def test_the_report_tells_the_error_and_the_corrections(self, model, tmp_path):
        latency, _, journal = self.limited(model, tmp_path)
        latency.measure_near_budget(self.space(latency), 0, lambda *_: None)
        said = latency.report(FULL)
        assert said["error"]["count"] == 120
        assert said["measured_error"] == pytest.approx(1 - 1 / 1.1, abs=0.02)
        assert [c["why"] for c in said["corrections"]] == ["near the budget, before the search"]
        journal.close()


def test_operators_of_a_network(resnet8, tmp_path):
    """Every convolution and the classifier, with the lengths that the sites give them."""
    import onnx

    from amc.deploy.export import export_onnx, file_layout

    graph, model = resnet8
    example = torch.randn(1, 1, 8, 8)
    export_onnx(model, example, tmp_path / "o.onnx")
    proto = onnx.load(str(tmp_path / "o.onnx"))
    found = operators(proto, file_layout(tmp_path / "o.onnx", graph, model), len(graph.sites), example.numpy())
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert len(found) == len(weights)
    full = np.array([s.channels for s in graph.sites])
    shapes = {(int(op.outputs[0] @ full) + op.outputs[1], int(op.inputs[0] @ full) + op.inputs[1]) for op in found}
    assert shapes == {tuple(w.shape[:2]) for w in weights}
    assert set(names(proto, found).values()) == set(range(len(found)))


def test_what_runs_between_two_operators_belongs_to_the_later_one():
    def event(name, dur):
        return {"name": f"{name}_kernel_time", "dur": dur}

    run = [
        event("conv_a_nchwc", 10),
        event("ReorderOutput", 3),
        event("b", 20),
        event("pool", 5),
        {"name": "model_run"},
    ]
    found = read_events(json.dumps([{"name": "session"}, *run, *run]).encode(), {"conv_a": 0, "b": 1})
    np.testing.assert_allclose(found, [[0.010, 0.028]] * 2)
