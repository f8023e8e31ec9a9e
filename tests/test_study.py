"""Optuna studies in a run's folder, and shared between processes."""

import multiprocessing
import os
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from amc.cli import main
from amc.envs.toy import toy_problem
from amc.errors import ConfigError
from amc.evaluation.backend import FunctionBackend
from amc.evaluation.problem import Problem, StudyLocation
from amc.evaluation.score import Score
from amc.runtime.journal import Journal
from amc.search import keeps_study, load_searcher, searchers
from amc.search.study import check_storage, open_storage

STUDIES = sorted(filter(keeps_study, searchers()))


def problem(place: StudyLocation | None, score=None, journal=None) -> Problem:
    toy, _ = toy_problem()
    return Problem(
        toy.space,
        toy.features,
        FunctionBackend(score or toy.backend.score, toy.site_error),
        journal=journal,
        study=place,
    )


def load(place: StudyLocation) -> optuna.Study:
    return optuna.load_study(study_name=place.name, storage=open_storage(place.url))


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_keeps_its_study_and_resuming_adds_nothing(name, tmp_path):
    place = StudyLocation(str(tmp_path / "study.log"), "toy")
    for evaluations in (5, 9):
        with Journal(tmp_path / "journal.jsonl") as journal:
            searched = problem(place, journal=journal)
            load_searcher(name)(searched, evaluations, 0)
        trials = load(place).get_trials(states=(TrialState.COMPLETE,))
        assert len(trials) == evaluations
        assert {tuple(t.user_attrs["choice"]) for t in trials} == {e.choice for e in searched.evaluations}


def test_a_study_contains_the_evaluations(tmp_path):
    place = StudyLocation(str(tmp_path / "study.log"), "toy")
    searched = problem(place)
    load_searcher("tpe")(searched, 12, 0)
    study, best = load(place), searched.best(1)[0]
    assert study.best_value == best.reward
    assert tuple(study.best_trial.user_attrs["choice"]) == best.choice
    assert study.best_trial.user_attrs["costs"] == dict(best.costs)


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_the_front_of_the_study_is_the_problems(name, tmp_path):
    place = StudyLocation(str(tmp_path / "study.log"), "toy")
    searched = problem(place)
    load_searcher(name)(searched, 60, 0)
    ours = searched.front()
    theirs = {tuple(t.user_attrs["choice"]) for t in load(place).best_trials}
    assert theirs == {e.choice for e in ours}
    assert len(ours) >= 5
    assert searched.best(1)[0] == ours[-1]
    assert [searched.cost(e) for e in ours] == sorted(searched.cost(e) for e in ours)


def test_genetic_search_of_the_front_beats_random_policies_below_the_budget():
    """By the area under the front; the baseline draws random proportions and shares of the budget."""
    import numpy as np

    from amc.search.samplers import tightened

    def area(searched: Problem) -> float:
        shares = np.linspace(0, 1, 101)
        return float(np.mean([max([e.metric for e in searched.evaluations if searched.cost(e) <= s], default=0)
                              for s in shares]))  # fmt: skip

    gained = []
    for seed in range(3):
        ours, chance, rng = problem(None), problem(None), np.random.default_rng(seed)
        load_searcher("nsga2")(ours, 150, seed)
        for _ in range(150):
            chance.evaluate(tightened(chance.space, rng.uniform()).fit(rng.uniform(0.1, 1.0, 5)))
        gained.append(area(ours) - area(chance))
    assert np.mean(gained) > 0, gained


def _work(url: str, evaluations: int, seed: int, pipe) -> None:
    done = []
    toy, _ = toy_problem(sites=4)

    def score(choice):
        done.append(choice)
        time.sleep(0.02)
        return Score(1.0, 0.5) if sum(choice) % 7 else toy.backend.score(choice)

    searched = Problem(
        toy.space, toy.features, FunctionBackend(score), study=StudyLocation(url, "toy", "same", shared=True)
    )
    load_searcher("tpe")(searched, evaluations, seed)
    pipe.send((done, [e.choice for e in searched.evaluations]))


@pytest.mark.parametrize("file", ["study.db", "study.log"])
def test_two_processes_fill_one_study_and_evaluate_nothing_twice(file, tmp_path):
    url, context = str(tmp_path / file), multiprocessing.get_context("fork")
    pipes, workers = zip(*[_start(context, url, 16) for _ in range(2)], strict=True)
    found = [pipe.recv() for pipe in pipes]
    for worker in workers:
        worker.join(30)
    done = [choice for own, _ in found for choice in own]
    assert len(done) == len(set(done))
    assert all(own for own, _ in found)  # both worked
    trials = load(StudyLocation(url, "toy")).get_trials(deepcopy=False)
    told = [t for t in trials if "costs" in t.user_attrs]
    assert 16 <= len(told) <= 17
    for _, seen in found:
        assert len(set(seen)) >= len(set(done)) - 1  # each knows what the other found, but for its last
    searched = problem_of(url)
    load_searcher("tpe")(searched, 16, 3)  # a third comes late: everything is known
    assert {e.choice for e in searched.evaluations} == set(done)


def _start(context, url, evaluations):
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(url, evaluations, 0, theirs))
    worker.start()
    return ours, worker


def problem_of(url: str) -> Problem:
    toy, _ = toy_problem(sites=4)

    def score(choice):
        raise AssertionError("nothing is left to evaluate")

    return Problem(
        toy.space, toy.features, FunctionBackend(score), study=StudyLocation(url, "toy", "same", shared=True)
    )


def test_trials_of_a_killed_process_are_taken_over(tmp_path):
    place = StudyLocation(str(tmp_path / "study.db"), "toy", "same", shared=True)
    load_searcher("qmc")(problem(place), 2, 0)
    storage = open_storage(place.url)
    study = optuna.load_study(study_name="toy", storage=storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        dead = study.ask()
    for name in load(place).trials[0].params:
        dead.suggest_float(name, 0.1, 1.0)
    storage.record_heartbeat(dead._trial_id)
    with storage.engine.begin() as connection:
        from sqlalchemy import text

        connection.execute(text("update trial_heartbeats set heartbeat = '2020-01-01 00:00:00'"))
    load_searcher("qmc")(problem(place), 4, 0)
    trials = load(place).trials
    assert trials[dead.number].state == TrialState.FAIL
    retried = [t for t in trials if t.system_attrs.get("failed_trial") == dead.number]
    assert [t.state for t in retried] == [TrialState.COMPLETE]
    assert retried[0].params == trials[dead.number].params


def test_a_study_of_another_network_is_refused(tmp_path):
    place = StudyLocation(str(tmp_path / "study.log"), "toy", "one", shared=True)
    load_searcher("qmc")(problem(place), 1, 0)
    with pytest.raises(ConfigError, match="another network"):
        load_searcher("qmc")(problem(StudyLocation(place.url, "toy", "two", shared=True)), 1, 0)
    with pytest.raises(ConfigError, match="other objectives"):
        load_searcher("nsga2")(problem(place), 1, 0)


def test_an_unreachable_storage_is_one_line_without_its_password(tmp_path):
    for url, said in (
        (f"sqlite:///{tmp_path}/no/such.db", "unable to open"),
        ("nosuchbase://me:secret@host/db", "nosuchbase"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            load_searcher("qmc")(problem(StudyLocation(url, "toy", shared=True)), 1, 0)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


def test_an_unreachable_storage_is_reported_before_anything_starts(tmp_path, capsys):
    run = tmp_path / "run"
    storage = f"sqlite:///{tmp_path}/no/such.db"
    assert main(["search", "--flops", "0.5", "--searcher", "tpe", "--storage", storage, "--out", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("unable to open database file.")
    assert not run.exists()


def test_a_failed_evaluation_is_in_the_shared_study_too(tmp_path):
    def score(choice):
        raise RuntimeError("broken")

    place = StudyLocation(str(tmp_path / "study.db"), "toy", shared=True)
    searched = problem(place, score)
    load_searcher("qmc")(searched, 3, 0)
    assert searched.proposals == 3
    assert [t.user_attrs["error"] for t in load(place).trials] == ["broken"] * 3


def test_another_version_of_a_plug_in_has_another_study(tmp_path, digits, monkeypatch):
    from amc.config import from_dict
    from amc.pipeline.record import Record
    from amc.pipeline.study import study_place
    from amc.runtime.locks import MeasurementLock
    from amc.runtime.monitor import Silent

    def identity(objective: str) -> str:
        config = from_dict({"search": {"storage": "study.db"}, "objective": objective})
        record = Record(digits[0], config, tmp_path, Journal(None), Silent(), MeasurementLock())
        return study_place(record).identity

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    first = [identity("mine.py:make"), identity("classification")]
    (tmp_path / "mine.py").write_text("# another")
    second = [identity("mine.py:make"), identity("classification")]
    assert first[1] == second[1]
    assert len({*first, *second}) == 3


def test_checking_a_storage_creates_no_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("study.log", "new/study.log", "study.db", "sqlite:///y.db", f"sqlite:///{tmp_path}/z", "sqlite://"):
        check_storage(url)
    assert not list(tmp_path.iterdir())
    Path("file").write_text("")
    long, wrong = f"sqlite:///{'a' * 300}", "sqlite:///y.db?timeout=soon"
    for url in ("file/study.log", "a" * 300, "sqlite:///file/study.db", "new/study.db", long, "sqlite:///.", wrong):
        with pytest.raises(ConfigError, match="--storage"):
            check_storage(url)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("url", ["odd.log", "odd.db", "sqlite:///odd.log"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_a_storage_is_a_regular_file(url, make, tmp_path, monkeypatch):
    """Optuna waits on a FIFO for ever, and reads a device until the memory is full."""
    monkeypatch.chdir(tmp_path)
    make(Path(url.removeprefix("sqlite:///")))
    for use in (check_storage.__wrapped__, lambda url: load_searcher("qmc")(shared(url), 1, 0)):
        with pytest.raises(ConfigError, match=r"--storage .*(regular file|directory)"):
            use(url)


def shared(url):
    return problem(StudyLocation(url, "toy", shared=True))
