"""The contract of all searchers, and the special features of AMC's agent."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from amc.envs.toy import ToyCosts, toy_problem
from amc.errors import ConfigError
from amc.evaluation.backend import Forwarding, FunctionBackend
from amc.evaluation.problem import Problem
from amc.evaluation.reward import loss as loss_reward
from amc.evaluation.score import Race, Score
from amc.runtime.journal import Journal
from amc.search import load_searcher, searchers
from amc.search.threshold import above_threshold
from amc.space.budget import Space
from amc.space.sites import Choice, numeric_sites
from amc.testing import check_search

NAMES = sorted(searchers())


EVALUATIONS = 16


def run(name: str, evaluations: int = EVALUATIONS, seed: int = 0, seed_of_toy: int = 0, **toy) -> Problem:
    problem, _ = toy_problem(seed=seed_of_toy, **toy)
    load_searcher(name)(problem, evaluations, seed)
    return problem


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_it_proposes_the_requested_number_within_the_budget(self, name: str):
        problem = run(name)
        assert problem.proposals == EVALUATIONS
        limit = problem.space.limits["macs"]
        assert all(e.costs["macs"] <= limit for e in problem.evaluations)

    @pytest.mark.parametrize("resources", [("latency",), ("macs", "latency")], ids=str)
    def test_it_searches_under_a_limit_on_latency(self, name: str, resources: tuple[str, ...]):
        problem = run(name, evaluations=6, resources=resources)
        assert problem.proposals == 6
        assert set(problem.space.limits) == set(resources)
        assert all(e.costs[r] <= limit for e in problem.evaluations for r, limit in problem.space.limits.items())

    def test_one_evaluation_is_enough(self, name: str):
        assert run(name, evaluations=1).proposals == 1

    def test_one_site_is_enough(self, name: str):
        assert run(name, evaluations=3, sites=1).proposals == 3

    def test_the_same_seed_gives_the_same_search(self, name: str):
        first, second = (run(name, seed=5) for _ in range(2))
        assert [e.choice for e in first.evaluations] == [e.choice for e in second.evaluations]

    def test_a_resumed_search_equals_an_uninterrupted_one(self, name: str, tmp_path):
        path = tmp_path / "journal.jsonl"
        toy, _ = toy_problem()
        calls, stop = 0, 0

        def score(choice):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return toy.backend.score(choice)

        def go(journal: Journal | None) -> Problem:
            problem = Problem(toy.space, toy.features, FunctionBackend(score, toy.site_error), journal=journal)
            load_searcher(name)(problem, EVALUATIONS, 0)
            return problem

        whole = go(None)
        needed, calls, stop = calls, 0, 6
        if needed > 6:
            with Journal(path) as journal, pytest.raises(KeyboardInterrupt):
                go(journal)
        stopped, stop = calls, 0
        with Journal(path) as journal:
            problem = go(journal)
        assert [e.choice for e in problem.evaluations] == [e.choice for e in whole.evaluations]
        assert calls == needed + (1 if stopped else 0)

    def test_it_passes_the_published_contract_suite(self, name: str):
        """With opaque settings and costs that are not monotone."""
        check_search(load_searcher(name))

    def test_a_failing_evaluation_does_not_end_the_search(self, name: str):
        toy, _ = toy_problem()

        def score(choice):
            if sum(choice) % 2:
                raise RuntimeError("broken\nin two lines")
            return Score(0.5, 0.5)

        problem = Problem(toy.space, toy.features, FunctionBackend(score))
        load_searcher(name)(problem, EVALUATIONS, 0)
        assert problem.proposals == EVALUATIONS
        assert {e.error for e in problem.evaluations} <= {None, "broken"}
        assert all(e.error is None for e in problem.best(3))


def test_races_are_run_against_the_best_policy(tmp_path):
    toy, _ = toy_problem(sites=2, channels=4, share=0.9)
    incumbents: list[Choice] = []
    outcomes = {
        (3, 2): Race(1.5, 0.5, 2.0, 0.25, 0.5, rejected=False),
        (1, 1): Race(1.0, 0.5, 2.0, 0.0, 0.25, rejected=True),  # no better than its incumbent, whatever is estimated
        (2, 3): Race(2.5, 0.625, 3.0, 0.5, 1.0, rejected=False),
    }

    def race(choice: Choice, incumbent: Choice, handicap: float) -> Race:
        assert handicap == 1
        incumbents.append(incumbent)
        return outcomes[choice]

    def problem(journal: Journal) -> Problem:
        backend = FunctionBackend(lambda _: Score(1.0, 0.25), race=race)
        return Problem(toy.space, toy.features, backend, loss_reward, journal)

    with Journal(tmp_path / "journal.jsonl") as journal:
        searched = problem(journal)
        found = [searched.evaluate(choice) for choice in [(2, 2), *outcomes]]
    assert incumbents == [(2, 2), (3, 2), (3, 2)]
    assert [e.loss for e in found] == [1.0, 0.75, 0.75, 0.625]
    assert [e.metric for e in found] == [0.25, 0.5, 0.5, 0.625]
    assert [e.choice for e in searched.best()] == [(2, 3), (3, 2), (1, 1), (2, 2)]
    assert (1, 1) not in [e.choice for e in searched.front()]
    with Journal(tmp_path / "journal.jsonl") as journal:
        again = problem(journal)
        assert [replace(again.evaluate(e.choice), seconds=e.seconds) for e in found] == found
    assert len(incumbents) == 3


def test_searching_beats_the_uniform_policy_on_the_toy():
    uniform = run("uniform").best(1)[0].metric
    for name in (
        "tpe",
        "gp",
        "spdy",
        "annealing",
        "evolution",
        "netadapt",
        "random",
        "allocate",
        "sensitivity",
        "particles",
        "transfer",
        "trylearn",
    ):
        assert run(name, evaluations=40).best(1)[0].metric > uniform, name


@pytest.mark.parametrize("name", ["tpe", "spdy", "sensitivity", "annealing", "evolution", "particles"])
def test_it_finds_better_policies_than_chance(name: str):
    """Best of 40, summed over three toys."""

    def found(searcher: str) -> float:
        return sum(run(searcher, 40, seed, seed_of_toy=seed).best(1)[0].metric for seed in range(3))

    assert found(name) > found("random")


def test_try_and_learn_learns():
    """Its last policies are better than its first, which are random ones near the uniform policy."""
    rewards = np.array([[e.reward for e in run("trylearn", 200, seed).evaluations] for seed in range(1)])
    assert rewards[0, -40:].mean() > rewards[0, :40].mean()


def test_the_threshold_keeps_what_is_important():
    """Equal sites get equal widths, unimportant channels are removed first, and no larger policy would fit."""
    costs = ToyCosts(np.ones(2))
    space = Space(numeric_sites("ab", (tuple(range(1, 9)),) * 2), costs, {"macs": 8.0})
    even, steep = 8.0 - np.arange(1, 9), 0.5 ** np.arange(1, 9)
    assert above_threshold(space, [even, even]) == (4, 4)
    # of mean 1, the channels of b are worth 3.5, 1.8, 0.9, … and those of a 1 each
    assert above_threshold(space, [even, steep]) == (5, 3)
    problem = run("threshold", 1)
    choice = problem.evaluations[0].choice
    for site, width in enumerate(choice):
        wider = [*choice[:site], min(8, width + 1), *choice[site + 1 :]]
        assert width == 8 or not problem.space.fits([wider])[0]


class Wavy:
    """A device on which some narrower widths are slower."""

    def costs(self, choices):
        w = np.atleast_2d(np.asarray(choices, np.float64))
        cost = (w + 2 * (w % 4 == 2)).sum(1)
        return {"macs": cost, "latency": cost}


@pytest.mark.parametrize("name", NAMES)
def test_limits_hold_where_a_narrower_site_can_be_slower(name: str):
    toy, _ = toy_problem()
    space = Space(toy.space.sites, Wavy(), {"latency": 0.6 * sum(toy.space.full)})
    backend = FunctionBackend(lambda choice: Score(1 - sum(choice) / 100, sum(choice) / 100), toy.site_error)
    problem = Problem(space, toy.features, backend)
    load_searcher(name)(problem, 40, 0)
    assert all(e.costs["latency"] <= space.limits["latency"] for e in problem.evaluations)


def test_systematic_resampling_follows_the_weights():
    from amc.search.particles import resample

    drawn = resample(np.array([0.5, 0.25, 0.25, 0.0]), np.random.default_rng(0))
    assert sorted(drawn) == [0, 0, 1, 2]


def test_tpe_starts_with_the_uniform_policy():
    assert run("tpe", 1).evaluations[0].choice == run("uniform", 1).evaluations[0].choice


def test_transfer_shares_evaluations_between_budgets():
    asked: list[set] = []
    for share in (0.3, 0.5, 0.8):
        toy, _ = toy_problem(share=share)
        asked.append(set())

        class Noted(Forwarding):
            def score(self, choice):
                asked[-1].add(choice)
                return super().score(choice)

        problem = Problem(toy.space, toy.features, Noted(toy.backend))
        load_searcher("transfer")(problem, 40, 0)
        assert problem.proposals == 40
        assert len(problem.evaluations) <= 2
    assert len(set.union(*asked)) <= 38 + 3 * 2


def test_transfer_searches_the_middle_budget_once():
    known: dict[str, object] = {}

    def memo(key, find):
        name = json.dumps(key)
        if name not in known:
            known[name] = json.loads(json.dumps(find()))
        return known[name]

    for share, proposals in ((0.3, 40), (0.5, 2), (0.8, 2)):
        toy, _ = toy_problem(share=share)
        backend = FunctionBackend(toy.backend.score, toy.site_error, memo=memo)
        problem = Problem(toy.space, toy.features, backend)
        load_searcher("transfer")(problem, 40, 0)
        assert problem.proposals == proposals
        alone = run("transfer", 40, share=share)
        assert [e.choice for e in problem.evaluations] == [e.choice for e in alone.evaluations]


def test_random_stays_near_the_budget():
    problem = run("random", 40)
    used = np.mean([e.costs["macs"] for e in problem.evaluations]) / problem.space.limits["macs"]
    assert used > 0.95


def test_an_unknown_searcher_comes_with_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        load_searcher("randon")


class TestAgent:
    """Differences between AMC's agent and SB3's DDPG, and mistakes that ports of the agent have made."""

    @pytest.fixture
    def agent(self):
        from amc.envs import PruningEnv
        from amc.search.ddpg import AmcDDPG, AmcPolicy

        env = PruningEnv(toy_problem()[0])
        agent = AmcDDPG(
            AmcPolicy, env, learning_rate=1e-4, buffer_size=500, learning_starts=50, batch_size=8, gamma=1.0, tau=0.01,
            train_freq=(1, "episode"), gradient_steps=-1, seed=0, device="cpu", policy_kwargs={"net_arch": [300, 300]},
        )  # fmt: skip
        agent.learn(100)
        return agent

    def test_actor_and_critic_have_their_own_learning_rates(self, agent):
        assert agent.actor.optimizer.param_groups[0]["lr"] == 1e-4
        assert agent.critic.optimizer.param_groups[0]["lr"] == 1e-3

    def test_every_step_of_an_episode_gets_its_reward(self, agent):
        rewards = agent.replay_buffer.rewards[:100, 0].reshape(20, 5)
        assert (rewards == rewards[:, :1]).all()
        assert len(np.unique(rewards[:, 0])) > 1

    def test_the_replay_buffer_has_the_applied_action(self, agent):
        shares = (agent.replay_buffer.actions[:100, 0, 0] + 1) / 2
        widths = shares * 8
        np.testing.assert_allclose(widths, widths.round(), atol=1e-5)
        episodes = widths.reshape(20, 5).round().astype(int)
        evaluated = {e.choice for e in agent.env.get_attr("problem")[0].evaluations}
        assert {tuple(map(int, row)) for row in episodes} == evaluated

    def test_the_next_observation_is_that_of_the_next_site(self, agent):
        buffer = agent.replay_buffer
        for start in range(0, 100, 5):
            np.testing.assert_array_equal(
                buffer.next_observations[start : start + 4], buffer.observations[start + 1 : start + 5]
            )
            assert buffer.dones[start : start + 5, 0].tolist() == [0, 0, 0, 0, 1]

    def test_there_are_as_many_updates_as_steps_after_the_warm_up(self, agent):
        assert agent._n_updates == 50

    def test_noise_is_truncated_and_decays_from_the_end_of_the_warm_up(self, agent):
        assert agent.sigma == pytest.approx(0.5 * 0.95**10)
        draws = np.concatenate([agent.truncated_normal(0.95) for _ in range(500)])
        assert draws.min() >= 0
        assert draws.max() <= 1
        assert (draws == 1).sum() == 0  # drawn again, not clipped

    def test_the_critic_sums_a_branch_for_the_state_and_one_for_the_action(self, agent):
        net = agent.critic.qf0
        state, action = torch.rand(3, 11), torch.rand(3, 1)
        expected = net.value(torch.relu(net.state(state) + net.action(action)))
        torch.testing.assert_close(agent.critic.q1_forward(state, action), expected)
        assert (net.state.out_features, net.value.in_features) == (300, 300)

    def test_training_does_not_change_the_replay_buffer(self, agent):
        before = agent.replay_buffer.rewards.copy()
        agent.train(1, 8)
        np.testing.assert_array_equal(agent.replay_buffer.rewards, before)


class TestSurrogate:
    def test_it_ranks_unseen_policies(self):
        from amc.search.surrogate import Surrogate

        rng = np.random.default_rng(0)
        x = np.log(rng.uniform(0.2, 1, (60, 8)))
        weights = rng.uniform(0, 1, 8)
        y = x @ weights - 0.3 * (x**2).sum(1)
        surrogate = Surrogate(x[:40], np.zeros(40), y[:40].tolist(), np.ones(40))
        mean, deviation = surrogate.predict(x[40:], np.zeros(20))
        assert np.corrcoef(mean.argsort().argsort(), y[40:].argsort().argsort())[0, 1] > 0.8
        assert (deviation > 0).all()

    def test_it_is_certain_about_known_policies(self):
        from amc.search.surrogate import Surrogate, improvement

        x = np.log(np.random.default_rng(1).uniform(0.2, 1, (30, 4)))
        surrogate = Surrogate(x, np.zeros(30), x.sum(1).tolist(), np.ones(30))
        _, here = surrogate.predict(x, np.zeros(30))
        mean, there = surrogate.predict(x - 3, np.zeros(30))
        assert here.max() < there.min()
        assert (improvement(mean, there, surrogate.best) >= 0).all()


def test_the_default_reaches_the_toys_optimum():
    problem, best = toy_problem()
    load_searcher("hybrid")(problem, 40, 0)
    assert problem.best(1)[0].metric > 0.999 * best
