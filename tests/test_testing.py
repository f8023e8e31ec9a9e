"""The conformance suite for latency models lets good ones pass and says what is wrong with others."""

import time

import numpy as np
import pytest
from networks import told_of

from amc.errors import LatencyError
from amc.latency import Predictor, Runner, load_latency_model
from amc.latency.fitted import fitted, sample_policies
from amc.testing import check_latency_model, example_problem


@pytest.fixture(scope="module")
def problem():
    """Without files: none of the models below looks into them."""
    return told_of("resnet20", lambda widths: b"")


class Good:
    """What layers compute, and something for starting them."""

    name, unit = "good", "ms"

    def prepare(self, told):
        self.layers, self.told = told.layers, told

    def predict(self, widths):
        return 0.05 + 1e-7 * self.macs(widths)

    def macs(self, widths):
        return sum(x.inputs(widths) * x.outputs(widths) * x.taps * x.positions for x in self.layers)


def test_a_good_model_passes(problem):
    check_latency_model(Good, problem, milliseconds=5)


def test_a_model_may_modify_its_argument(problem):
    def eats(self, widths):
        ms = Good.predict(self, widths)
        widths.clear()
        return ms

    check_latency_model(type("Eats", (Good,), {"predict": eats}), problem, milliseconds=5)


def test_the_example_is_a_real_network():
    with example_problem() as own:
        outputs = Runner(own.cut(own.smallest))(np.zeros((1, 3, 32, 32), np.float32))
        assert outputs.shape == (1, 10)
        assert Runner(own.cut(own.full))(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
        assert 0 < own.original_ms < 1000


def test_without_a_problem_the_example_is_used():
    asked = []

    class Own(Good):
        def prepare(self, told):
            super().prepare(told)
            asked.append(told.full)

    check_latency_model(Own, milliseconds=5)
    assert set(asked[0]) >= {"conv1"}


def bad(**members):
    return type("Bad", (Good,), members)


def random(self, widths):
    return float(np.random.default_rng().uniform(1, 2))


def slow(self, widths):
    time.sleep(0.002)
    return Good.predict(self, widths)


def jagged(self, widths):
    """A width of 16 is much faster than 12."""
    first = next(iter(widths.values()))
    return Good.predict(self, widths) + 3 * (first % 16 > 0)


COUNT = iter(range(1000))


@pytest.mark.parametrize(
    ("members", "error", "told"),
    [
        ({"unit": "s"}, LatencyError, "the unit 's'"),
        ({"predict": lambda self, widths: float("nan")}, LatencyError, "gives nan"),
        ({"predict": random}, (AssertionError, LatencyError), "differ|seems to ignore"),
        ({"predict": slow}, AssertionError, "a prediction takes"),
        ({"predict": jagged}, (AssertionError, LatencyError), "makes the network faster|the smallest of all"),
        ({"predict": lambda self, widths: 1.0}, AssertionError, "widths do not matter"),
        ({"predict_all": lambda self, rows: np.full(len(rows), 2.0)}, AssertionError, "predict_all gives 2"),
        ({"prepare": lambda self, told: (Good.prepare(self, told), setattr(self, "more", next(COUNT)))[0],
          "predict": lambda self, widths: Good.predict(self, widths) + self.more}, AssertionError, "another instance"),
    ],
)  # fmt: skip
def test_a_bad_model_is_rejected_with_a_reason(problem, members, error, told):
    with pytest.raises(error, match=told):
        check_latency_model(bad(**members), problem, policies=10, milliseconds=1.5)


class Slow(Good):
    """A device that is asked for seconds: layers that differ in what a MAC costs."""

    measures = True
    asked = 0

    def predict(self, widths):
        type(self).asked += 1
        costs = np.random.default_rng(5).uniform(0.5, 2, len(self.layers))
        macs = [x.inputs(widths) * x.outputs(widths) * x.taps * x.positions for x in self.layers]
        return 0.3 + 1e-7 * float(costs @ macs)


def test_few_measurements_predict_the_rest(problem):
    """The networks predicted were never measured; the model's own estimate of its error is of that size."""
    Slow.asked = 0
    slow = Slow()
    predictor = Predictor(slow, problem)
    model = fitted(predictor, problem)
    assert Slow.asked == 2 + model.networks
    assert 16 <= model.networks <= 32
    rng = np.random.default_rng(3)
    rows = np.array([[rng.choice(s) for s in problem.settings.values()] for _ in range(100)])
    errors = np.abs(model.predict_all(rows) / predictor(rows) - 1)
    ends = [[settings[end] for settings in problem.settings.values()] for end in (0, -1)]
    assert model.predict_all(ends) == pytest.approx(
        predictor(ends)
    )  # limits are shares of the one, and end at the other
    assert errors.mean() < 0.03
    assert errors.mean() / 3 < model.error < 0.1


def test_a_fitted_model_conforms_and_is_quick(problem):
    class Fitted:
        name, unit = "fitted", "ms"

        def prepare(self, told):
            own = fitted(Predictor(Slow(), told), told)
            self.predict, self.predict_all = own.predict, own.predict_all

        def predict(self, widths):
            raise NotImplementedError

    check_latency_model(Fitted, problem, tolerance=1e-9, milliseconds=0.5)


def test_the_policies_that_are_measured_are_legal_and_the_same_every_time(problem):
    settings = list(problem.settings.values())
    rows = sample_policies(settings, 16)
    assert rows == sample_policies(settings, 16)
    assert rows[0] == list(problem.full.values())
    assert rows[1] == list(problem.smallest.values())
    assert len({tuple(row) for row in rows}) == 16
    assert all(width in own for row in rows for width, own in zip(row, settings, strict=True))


def test_a_table_conforms(problem, tmp_path):
    """By layer, what its products take."""
    rows = ["*,,0.05"]
    for layer in problem.layers:
        full, small = (layer.inputs(problem.full), layer.outputs(problem.full)), (1, 1)
        for inputs in sorted({small[0], full[0]}):
            for outputs in sorted({small[1], full[1]}):
                rows.append(f"{layer.name},{inputs}x{outputs},{1e-7 * inputs * outputs * layer.taps * layer.positions}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["layer,widths,ms", *rows]))
    check_latency_model(lambda: load_latency_model(str(path)), problem, milliseconds=5)
