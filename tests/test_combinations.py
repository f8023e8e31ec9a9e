"""Criteria, scopes, schedules and recoveries together: what can be had holds the budget, what cannot is told first."""

import copy
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from amc.config import BudgetConfig, Config, DataConfig, FinetuneConfig, ModelConfig, SearchConfig
from amc.deploy.bundle import save_weights
from amc.errors import ConfigError
from amc.evaluation.criterion_search import best_orders
from amc.evaluation.site_errors import SiteErrors
from amc.graph import build_graph
from amc.importance import COMPARED, CRITERIA, compared, criteria, criterion_files, load_criterion, rank
from amc.operators.channels import all_widths, legal_widths
from amc.operators.operator import NetworkFacts
from amc.pipeline import recovering
from amc.pipeline.checks import check
from amc.pipeline.pipeline import compress_task
from amc.reconstruction.moments import collect, readers
from amc.task import Task, load_data, make_task

DATA = DataConfig(search=60, calibration=64)


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    )  # fmt: skip
    return make_task("tiny", model, load_data(DATA), torch.device("cpu"))


@pytest.fixture(scope="module")
def early(task, tmp_path_factory):
    path = tmp_path_factory.mktemp("early") / "early.safetensors"
    save_weights(task.model, path)
    return str(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of all runs: the original is exported once."""
    return str(tmp_path_factory.mktemp("cache"))


def config(**choices) -> Config:
    search = {key: choices.pop(key) for key in ("criterion", "criterion_scope") if key in choices}
    weights, cache = choices.pop("weights", None), choices.pop("cache", None)
    return Config(
        data=DATA,
        model=ModelConfig(weights=weights),
        budget=BudgetConfig(params="0.6"),
        search=SearchConfig(searcher="uniform", evaluations=1, recalibrate="off", **search),
        finetune=FinetuneConfig(**{"epochs": 0.3, "candidates": 1, "precision": "float32", **choices}),
        threads=1,
        device="cpu",
        cache=cache,
    )


SCHEDULES = {"one-shot": {}, "iterative": {"steps": 2}, "gradual": {"steps": 2}, "layerwise": {}, "before-training": {}}
QUICK = [name for name in CRITERIA if name not in ("pcas", "obd")]


SCOPES, RECOVERIES = (
    ("site", "local", "global", "flops"),
    ("finetune", "none", "rewind-lr", "rewind-weights", "scratch"),
)


def combined(criterion, scope, schedule, recover, early, **other):
    return config(
        criterion=criterion, criterion_scope=scope, schedule=schedule, schedule_options=SCHEDULES[schedule],
        recover=recover, recover_options={"weights": early} if recover == "rewind-weights" else {},
        weights="random" if schedule == "before-training" else None, **other,
    )  # fmt: skip


def is_possible(criterion, scope, schedule, recover):
    return not (
        (schedule != "one-shot" and recover == "none")
        or (recover == "scratch" and schedule not in ("one-shot", "before-training"))
        or (schedule == "before-training" and (scope == "site" or recover not in ("finetune", "scratch")))
        or (scope in ("global", "flops") and load_criterion(criterion).gives == "order")
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_impossible_combination_is_refused_before_the_run(early, schedule):
    for criterion, scope, recover in product(("obs", "taylor", "search:obs,l1"), SCOPES, RECOVERIES):
        own = combined(criterion, scope, schedule, recover, early)
        if is_possible(criterion, scope, schedule, recover):
            check(own)
        else:
            with pytest.raises(ConfigError, match=r"cannot be combined|gives an order"):
                check(own)


@pytest.mark.slow
@given(st.tuples(st.sampled_from([*QUICK, "search:obs,l1"]), st.sampled_from(SCOPES), st.sampled_from(list(SCHEDULES)),
                 st.sampled_from(RECOVERIES)).filter(lambda drawn: is_possible(*drawn)))  # fmt: skip
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_possible_combination_meets_the_budget(task, early, cache, tmp_path_factory, drawn):
    own = combined(*drawn, early, cache=cache)
    check(own)
    found = compress_task(task, own, tmp_path_factory.mktemp("run"))
    assert all(proof["met"] for proof in found.summary["proof"])
    assert found.summary["final"]["params"] <= 0.6 * found.summary["original"]["params"]


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"schedule": "iterative", "recover": "none"}, "iterative cannot be combined with --recover none"),
        ({"schedule": "layerwise", "epochs": 0}, "cannot be combined with --finetune-epochs 0"),
        ({"schedule": "gradual", "recover": "scratch"}, "Use --schedule one-shot"),
        ({"schedule": "before-training"}, "give --weights random"),
        ({"schedule": "before-training", "weights": "random"}, "give --criterion-scope local, global or flops"),
        ({"schedule": "before-training", "weights": "random", "criterion_scope": "local", "recover": "rewind-lr"},
         "nothing has been trained yet. Leave --recover out"),
        ({"recover": "rewind-weights"}, "weights"),
        ({"criterion": "search:obs"}, "name two at least"),
        ({"criterion": "search:obs,search"}, "cannot be one of them"),
        ({"criterion": "search:obs,l3"}, "unknown criterion 'l3'"),
        ({"criterion": "search", "criterion_scope": "global"}, "gives an order within a site"),
    ],
)  # fmt: skip
def test_impossible_combinations_are_refused_with_a_suggestion(choices, told):
    with pytest.raises(ConfigError, match=told):
        check(config(**choices))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "options", "weights"),
    [("layerwise", {}, None), ("before-training", {}, "random")],
)
def test_every_schedule_resumes_at_every_point(task, cache, tmp_path, monkeypatch, schedule, options, weights):
    own = config(schedule=schedule, schedule_options=options, weights=weights,
                 criterion="snip", criterion_scope="local", cache=cache)  # fmt: skip
    check(own)
    wanted = compress_task(task, own, tmp_path / "whole").model.state_dict()
    real, begun = recovering.train, []

    class Killed(BaseException):
        pass

    def killed(model, task, plan, teacher, checkpoint, *others):
        if checkpoint.name not in begun:
            begun.append(checkpoint.name)
            raise Killed
        return real(model, task, plan, teacher, checkpoint, *others)

    monkeypatch.setattr(recovering, "train", killed)
    found = None
    while found is None:
        try:
            found = compress_task(task, own, tmp_path / "killed")
        except Killed:
            assert len(begun) < 9
    assert len(begun) == (1 if schedule == "before-training" else 2)
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.model.state_dict().items())


@pytest.mark.slow
def test_before_training_weights_stay_as_they_are(task, cache, tmp_path, monkeypatch):
    """Nothing is re-solved, and the untrained original teaches nothing."""
    seen = []

    def watch(model, task, plan, teacher, checkpoint, *others):
        seen.append((copy.deepcopy(model), plan))
        return model.eval()

    monkeypatch.setattr(recovering, "train", watch)
    own = config(
        schedule="before-training", weights="random", criterion="synflow", criterion_scope="local", cache=cache
    )
    compress_task(task, own, tmp_path / "run")
    model, plan = seen[0]
    whole = task.model[0].weight.detach().flatten(1)
    rows = model[0].weight.detach().flatten(1)
    assert len(rows) < len(whole)
    assert all(any(torch.equal(row, other) for other in whole) for row in rows)
    assert plan.distillation == 0


# --- the criterion as a choice ----------------------------------------------------------------------------------------


def test_every_site_gets_the_criterion_with_the_least_error(task):
    graph = build_graph(task.model, task.example)
    moments = collect(task, readers(graph, task.model), 0)
    names = ["l1", "obs", "random", "filter-l2"]
    orders = [rank(name, graph, task.model, moments) for name in names]
    best = best_orders(task, graph, moments, orders, "logit_mse", 0.2)
    for site, group in enumerate(graph.sites):
        errors = []
        for own in orders:
            facts = NetworkFacts(task.model, graph, orders=[order.numpy() for order in own])
            table = SiteErrors(task, facts, all_widths(graph), moments, "logit_mse")
            widths = legal_widths(group.channels, 0.2)[:-1]
            errors.append(sum(table(site, width) for width in widths) / len(widths))
        assert best[site] == errors.index(min(errors))


@pytest.mark.slow
def test_the_search_says_which_criteria_it_took(task, tmp_path):
    lines = []

    class Heard:
        def __getattr__(self, name):
            return lambda *words: lines.append(words)

    own = config(criterion="search:random,obs,l2", epochs=0)
    compress_task(task, own.replace(cache=str(tmp_path / "cache")), tmp_path / "run", Heard())
    assert any("criteria: " in str(words) and " sites" in str(words) for words in lines)
    compress_task(task, own.replace(cache=str(tmp_path / "cache")), tmp_path / "again")
    assert (tmp_path / "run/policy.json").read_text() == (tmp_path / "again/policy.json").read_text()


def test_what_is_compared():
    assert compared("search") == COMPARED
    assert load_criterion("search").needs >= load_criterion("taylor").needs | load_criterion("obs").needs
    assert "search" in criteria()
    assert criterion_files("search:obs,l1") == {}
