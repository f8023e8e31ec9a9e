"""The environment against Algorithm 1 by hand, and against the checks of Gymnasium and SB3."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check

import amc
import amc.envs
from amc.envs.drawing import GAP, KEPT, ROW, UNDECIDED, WIDTH
from amc.envs.toy import ToyCosts, toy_problem
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem
from amc.evaluation.score import Score
from amc.graph.sites import SiteFeatures
from amc.space.budget import Space
from amc.space.sites import numeric_sites


def small_problem() -> Problem:
    """Three sites of widths 1 to 4 at prices 1, 2, 3; 24 in all, 12 allowed."""
    space = Space(numeric_sites("abc", ((1, 2, 3, 4),) * 3), ToyCosts([1, 2, 3]), {"macs": 12})
    features = [
        SiteFeatures(4, 2, 8, 4, 1, 3, 4),
        SiteFeatures(4, 4, 8, 4, 2, 3, 8),
        SiteFeatures(4, 4, 4, 2, 1, 1, 12),
    ]
    return Problem(space, features, FunctionBackend(lambda choice: Score(1.0, sum(choice) / 12)))


def step(env: amc.envs.PruningEnv, share: float):
    return env.step(np.array([share], np.float32))


def test_it_is_registered_and_passes_both_checkers():
    env = gymnasium.make("amc/Pruning-v0", problem=toy_problem()[0]).unwrapped
    with warnings.catch_warnings():
        # SB3 would like actions in [-1, 1]; AMC's preserve ratio is in [0, 1], and SB3 scales it itself
        warnings.filterwarnings("ignore", message="We recommend you to use a symmetric")
        sb3_check(env)
    gymnasium_check(env, skip_render_check=False)


def test_algorithm_1_by_hand():
    env = amc.envs.PruningEnv(small_problem())
    env.reset()
    # later sites at their least cost 2·1 + 3·1 = 5: up to 7 are left, all of site a is allowed
    assert step(env, 1.0)[4]["setting"] == 4
    # 12 - 4 - 3 = 5 for b at price 2: at most 2, though all of it was asked for
    assert step(env, 1.0)[4]["setting"] == 2
    # 12 - 4 - 4 = 4 for c at price 3: 1
    _, reward, done, _, info = step(env, 1.0)
    assert (info["setting"], done) == (1, True)
    assert info["evaluation"].choice == (4, 2, 1)
    assert info["evaluation"].costs["macs"] == 11
    assert reward == pytest.approx(-(1 - 7 / 12))


def test_the_largest_equally_fast_setting_within_the_budget_is_taken():
    space = Space(numeric_sites("abc", ((1, 2, 3, 4),) * 3), ToyCosts([1, 2, 3]), {"latency": 6, "macs": 14})
    backend = FunctionBackend(lambda choice: Score(1.0, 0.5))
    env = amc.envs.PruningEnv(Problem(space, small_problem().features, backend))
    env.reset()
    assert step(env, 0.25)[4] == {"setting": 2, "share": 0.5}, "a pair takes as long as one of it"
    assert step(env, 0.75)[4]["setting"] == 4
    assert step(env, 0.25)[4]["setting"] == 1, "14 - 2 - 8 = 4 is left of the MACs: at a price of 3 for one"


def test_rewards_come_at_the_end_only():
    env = amc.envs.PruningEnv(small_problem())
    env.reset()
    assert step(env, 0.5)[1] == 0
    assert step(env, 0.5)[1] == 0
    assert step(env, 0.5)[1] < 0


def test_the_observation_is_of_the_site_about_to_be_decided():
    env = amc.envs.PruningEnv(small_problem())
    first, _ = env.reset()
    # t, n, c, h, w, stride, k, MACs over their largest; nothing reduced, (8 + 12) / 24 rest, no action yet
    assert first.tolist() == pytest.approx([0, 1, 2 / 4, 1, 1, 1 / 2, 1, 4 / 12, 0, 20 / 24, 0])
    second = step(env, 0.5)[0]  # a keeps 2 of 4: 2 of 24 MACs are gone
    assert second.tolist() == pytest.approx([1 / 2, 1, 1, 1, 1, 1, 1, 8 / 12, 2 / 24, 12 / 24, 0.5])
    third = step(env, 0.25)[0]  # b keeps 1 of 4: 6 more
    assert third.tolist() == pytest.approx([1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 3, 1, 8 / 24, 0, 0.25])


def test_the_share_goes_to_the_nearest_legal_width():
    env = amc.envs.PruningEnv(small_problem())
    env.reset()
    assert step(env, 0.60)[4] == {"setting": 2, "share": 0.5}
    assert step(env, 0.0)[4] == {"setting": 1, "share": 0.25}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 50),
    share=st.floats(0.3, 0.95),
    actions=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_no_episode_ends_over_budget(seed: int, share: float, actions: list[float]):
    problem, _ = toy_problem(share, sites=4, channels=5, seed=seed)
    env = amc.envs.PruningEnv(problem)
    observation, _ = env.reset()
    for action in actions:
        assert env.observation_space.contains(observation)
        observation, _, done, _, info = step(env, action)
    assert done
    assert info["evaluation"].costs["macs"] <= problem.space.limits["macs"]


def test_the_uniform_episode_is_not_beaten_by_the_known_optimum_by_accident():
    problem, best = toy_problem()
    uniform = problem.evaluate(problem.space.fit(np.ones(5)))
    assert uniform.metric < best <= 1


class TestMake:
    def test_by_name_alone_on_the_embedded_example(self):
        few = {"data": {"calibration": 64, "search": 50}}
        env = gymnasium.make("amc.envs:amc/Pruning-v0", budget=0.5, config=few, render_mode="ansi")
        env.reset(seed=0)
        done = False
        while not done:
            _, reward, done, _, info = env.step(np.array([0.6], np.float32))
        evaluation = info["evaluation"]
        assert reward == evaluation.reward == -evaluation.loss
        assert evaluation.share == 1
        lines = env.render().splitlines()
        assert [line.rpartition("  ")[2] for line in lines] == [
            f"{width} of {site.sizes[-1]}"
            for width, site in zip(evaluation.choice, env.unwrapped.problem.space.sites, strict=True)
        ]

    def test_a_users_own_network(self):
        network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        data = [(torch.randn(6, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(80)]
        problem = amc.make_problem(network, data, budget={"params": 0.6})
        found = problem.evaluate(problem.space.fit([1.0]))
        assert found.costs["params"] <= 0.6 * 83
        assert len(network[0].weight) == 8

    def test_missing_arguments_are_named(self):
        with pytest.raises(amc.AmcError, match="needs data, too: train="):
            amc.make_problem(torch.nn.Linear(2, 2))
        with pytest.raises(amc.AmcError, match="has no latency"):
            amc.make_problem(budget={"latency": 0.5})
        with pytest.raises(amc.AmcError, match="of a problem or of budget, not of both"):
            gymnasium.make("amc.envs:amc/Pruning-v0", problem=toy_problem()[0], budget=0.5)

    def test_several_at_once(self):
        envs = gymnasium.make_vec("amc.envs:amc/Toy-v0", num_envs=3, sites=2)
        observations, _ = envs.reset(seed=0)
        assert observations.shape == (3, 11)
        _, rewards, *_ = envs.step(np.full((3, 1), 0.5, np.float32))
        assert rewards.tolist() == [0, 0, 0]

    def test_the_picture_shows_what_is_kept(self):
        env = gymnasium.make("amc.envs:amc/Toy-v0", sites=3, share=1.0, render_mode="rgb_array")
        env.reset(seed=0)
        env.step(np.array([0.5], np.float32))
        picture = env.render()
        rows = [picture[GAP + site * (ROW + GAP)] for site in range(3)]
        assert [int((row == KEPT).all(1).sum()) for row in rows] == [WIDTH // 2, 0, 0]
        assert [int((row == UNDECIDED).all(1).sum()) for row in rows] == [0, WIDTH, WIDTH]
