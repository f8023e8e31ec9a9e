"""A limit on latency is never reported as met if it is not: properties of random profiles, devices and policies."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.errors import BudgetError, LatencyError
from amc.latency.constraint import LatencyConstraint
from amc.latency.correction import BOUNDS, ROUNDS, Corrections, RoundOver
from amc.latency.learned import Sample, Tables, fit
from amc.latency.measurement import Latency, Measurement
from amc.latency.operators import Operator
from amc.latency.prediction import LatencyPrediction
from amc.latency.profile import policies
from amc.latency.reference import Timing
from amc.latency.verification import MeasuredProof, Verifier
from amc.operators.channels import legal_widths
from amc.runtime.journal import Journal
from amc.space.budget import Space
from amc.space.sites import numeric_sites

FULL = (16, 16, 32, 32, 64)
BRANCHES = (0, 1, 2, 3)
"""Sites whose branch can be removed; the last one is not in a branch."""


def operators() -> tuple[Operator, ...]:
    """A residual network: a stem, a branch of two operators for every site, a fixed layer, and a classifier."""
    unit, none = np.eye(len(FULL), dtype=np.int64), np.zeros(len(FULL), np.int64)
    found = [Operator("stem", "stem", (none, 3), (none, 16))]
    for site in BRANCHES:
        found.append(Operator(f"in{site}", f"in{FULL[site]}", (none, FULL[site]), (unit[site], 0), site))
        found.append(Operator(f"out{site}", f"out{FULL[site]}", (unit[site], 0), (none, FULL[site]), site))
    return (
        *found,
        Operator("wide", "wide", (none, 32), (unit[4], 0)),
        Operator("fc", "fc", (unit[4], 0), (none, 10)),
    )


OPERATORS = operators()
START = 0.002


def operator_ms(widths) -> np.ndarray:
    """Milliseconds of the operators, which compute blocks of 8 channels; 0 for a removed branch."""
    w, found = np.array(widths), []
    for op in OPERATORS:
        i, o = op.inputs[0] @ w + op.inputs[1], op.outputs[0] @ w + op.outputs[1]
        removed = op.branch >= 0 and w[op.branch] == 0
        found.append(0.0 if removed else START + 1e-3 * -(-i // 8) * -(-o // 8))
    return np.array(found)


WHOLE = float(operator_ms(FULL).sum())


class Device:
    """Takes the operators' time to a power (1: their sum) times an unknown factor, with noise; a `Meter`."""

    original_ms = WHOLE

    def __init__(self, power: float, factor: float, noise: float, seed: int) -> None:
        self.power, self.factor, self.noise, self.rng = power, factor, noise, np.random.default_rng(seed)

    def ratio(self, widths) -> float:
        """The true ratio to the original's time."""
        return float(self.factor * (operator_ms(widths).sum() / WHOLE) ** self.power)

    def timing(self, widths, sessions: int = 1) -> Timing:
        return Timing(self.ratio(widths) * float(np.exp(self.noise * self.rng.standard_normal())), 1.0, WHOLE)


def learned(device: Device, count: int, removed: bool) -> Tables:
    """A model learned from a profile of so many networks, with or without removed branches."""
    stream, samples = policies([legal_widths(c, 0.1) for c in FULL], BRANCHES if removed else ()), []
    for _ in range(count):
        widths = next(stream)
        ratio = device.timing(widths).ratio / device.factor
        samples.append(Sample(widths, ratio, 1.0, WHOLE, tuple(operator_ms(widths).tolist())))
    return fit(OPERATORS, samples, WHOLE, 8, FULL)


def limited(device: Device, share: float, removed: bool = True, evaluations: int = 8) -> LatencyConstraint:
    """A run's latency constraint on that device."""
    tables, journal, asked = learned(device, 25, removed), Journal(None), f"{share:.12f}"
    prediction = LatencyPrediction(tables, WHOLE, {}, tables)
    verifier, proof = Verifier(device, prediction, journal), MeasuredProof(asked, WHOLE)
    return LatencyConstraint(float(asked) * WHOLE, prediction, verifier, proof, Corrections(journal, evaluations))


SETTINGS = tuple((0, *legal_widths(c, 0.1)) if s in BRANCHES else legal_widths(c, 0.1) for s, c in enumerate(FULL))


@st.composite
def devices(draw) -> Device:
    return Device(draw(st.floats(0.7, 1.8)), 1.0, draw(st.floats(0, 0.15)), draw(st.integers(0, 2**16)))


class TestPredictions:
    def test_predictions_for_the_smallest_policy_are_positive(self):
        """25 networks with all branches and 3 % noise; small networks are faster than the sum of their operators."""
        model = learned(Device(1.3, 1.0, 0.03, 0), 25, removed=False)
        smallest = tuple(s[0] for s in SETTINGS)
        assert model([smallest])[0] >= model.starting([smallest])[0] > 0
        assert model([smallest])[0] == pytest.approx(operator_ms(smallest).sum(), rel=0.5)

    @settings(max_examples=25)
    @given(device=devices(), removed=st.booleans(), data=st.data())
    def test_predictions_are_at_least_the_time_for_starting_operators(self, device, removed, data):
        model = learned(device, 25, removed)
        rows = np.array([[data.draw(st.sampled_from(s)) for s in SETTINGS], [s[0] for s in SETTINGS], FULL])
        for tables in (model, model.non_decreasing(SETTINGS)):
            least = tables.starting(rows)
            assert (tables(rows) >= least * (1 - 1e-9)).all()
            assert (least > 0).all()
            assert least[1] <= least[0] * (1 + 1e-9) <= least[2] * (1 + 2e-9)  # fewer operators, a lower bound

    @settings(max_examples=15)
    @given(device=devices(), data=st.data())
    def test_a_wider_setting_never_takes_less(self, device, data):
        predict = learned(device, 25, removed=True).non_decreasing(SETTINGS)
        row = [data.draw(st.sampled_from(s)) for s in SETTINGS]
        for site, own in enumerate(SETTINGS):
            times = predict([[*row[:site], width, *row[site + 1 :]] for width in own])
            assert (np.diff(times) >= -1e-12).all()


class NoCosts:
    """A cost model without other resources."""

    def costs(self, choices):
        return {}


def space_of(latency: LatencyConstraint) -> Space:
    names = tuple(f"s{n}" for n in range(len(FULL)))
    return Space(numeric_sites(names, SETTINGS), latency.costs(NoCosts(), SETTINGS), {"latency": latency.limit_ms})


def measured(device: Device, choice, hidden: float) -> Measurement:
    """The measurement of the delivered network, which takes ``hidden`` times the policy's latency."""
    ratio = hidden * device.ratio(choice)
    found = {"original": Latency(*[WHOLE] * 3, 1.0, 1.0, 1.0), "final": Latency(*[ratio * WHOLE] * 3, *[ratio] * 3)}
    return Measurement(found, "original", 1, 1, np.zeros((6, 2)))


def run(latency: LatencyConstraint, device: Device, hidden: float, seed: int):
    """Run the rounds as the pipeline does. Returns the delivered policy, its latency, and the number of rounds."""
    latency.measure_near_budget(space_of(latency), seed, lambda *_: None)
    rng, tried = np.random.default_rng(seed), []
    for rounds in range(1, 2 * ROUNDS):
        space = space_of(latency)
        found, asked = [], latency.round.evaluations
        try:
            for number in range(1, asked + 1):
                found.append(space.fit(rng.uniform(0.05, 1, len(FULL))))
                latency.check(space, number, lambda found=found: found)
        except RoundOver:
            continue
        finally:
            tried += found
        good = latency.fast_enough(tried, 6, lambda *_: None)
        obstacle = None if good else latency.search_again(space, latency.expected_within(tried, 6))
        if not good and obstacle is None:
            continue
        chosen = good[0] if good else latency.closest(tried)
        verified = latency.proof.verify(None, chosen, measured(device, chosen, hidden))
        if verified.met or (obstacle or latency.tighten(space, verified)):
            return chosen, verified, rounds
    raise AssertionError("the rounds do not end")


class TestRuns:
    @settings(max_examples=40)
    @given(
        device=devices(),
        factor=st.floats(0.3, 3),
        hidden=st.floats(0.9, 1.5),
        share=st.floats(0.1, 1),
        removed=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_a_measured_time_over_the_limit_is_never_reported_as_met(
        self, device, factor, hidden, share, removed, seed
    ):
        device.factor = factor
        latency = limited(device, share, removed)
        try:
            chosen, verified, rounds = run(latency, device, hidden, seed)
        except (BudgetError, LatencyError):  # refused before the search
            assert len(latency.corrections.all()) <= 1
        else:
            true_ms = hidden * device.ratio(chosen) * WHOLE
            assert verified.ms == pytest.approx(true_ms)
            assert verified.met == (true_ms <= latency.limit_ms)
            assert rounds <= ROUNDS
        assert all(BOUNDS[0] <= c.scale <= BOUNDS[1] for c in latency.corrections.all())

    def test_a_network_that_was_measured_within_the_limit_is_preferred(self):
        device = Device(1.0, 1.0, 0.0, 0)
        latency = limited(device, 0.6)
        space = space_of(latency)
        small = space.fit([1, 0.3, 0.3, 0.3, 0.3])
        assert latency.fast_enough([FULL, small], 2, lambda *_: None) == [small]
        device.factor = 1.5
        assert latency.closest([FULL, space.smallest, small]) == small  # it was measured, the smallest was not

    def test_a_smallest_network_measured_within_the_limit_is_accepted(self):
        """Networks near the budget take 1.9 times the predicted latency; the prediction for the smallest is right."""
        device = Device(1.0, 1.0, 0.0, 0)
        latency = limited(device, 0.9)
        smallest = space_of(latency).smallest
        latency = replace(latency, limit_ms=1.8 * latency.prediction.ms(smallest))
        predicted_ratio = device.ratio
        device.ratio = lambda widths: predicted_ratio(widths) * (1.0 if tuple(widths) == smallest else 1.9)
        latency.measure_near_budget(space_of(latency), 0, lambda *_: None)
        assert latency.verifier.known(smallest).ms <= latency.limit_ms
        assert latency.now.scale == pytest.approx(1.8, rel=0.01)
        assert space_of(latency).costs(smallest)["latency"] <= latency.limit_ms
