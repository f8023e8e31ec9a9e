"""What users choose by name: amc's own, installed packages', and their own files', in the same way."""

from pathlib import Path

import pytest

from amc.cli import main
from amc.config import from_dict
from amc.envs.toy import toy_problem
from amc.errors import BundleError, ConfigError
from amc.pipeline.checks import check
from amc.pipeline.trust import refuse_plugins
from amc.runtime.registry import settings_of
from amc.search import check_searcher, load_searcher, may_race, run_searcher, searchers

OWN = """
from typing import Annotated

import numpy as np

from amc.runtime.registry import about


def search(problem, evaluations, seed, *, least: Annotated[float, about("smallest share", gt=0, le=1)] = 0.3, words=()):
    rng = np.random.default_rng(seed)
    for _ in range(evaluations):
        problem.evaluate(problem.space.fit(rng.uniform(least, 1, len(problem.space.names))))


def exact(problem, evaluations, seed):
    search(problem, evaluations, seed)


exact.races = False


def lazy(problem, evaluations, seed): ...


def broken(problem, evaluations, seed):
    return 1 / 0


def demanding(problem, evaluations, seed, *, depth: int): ...
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def evaluated(name: str, settings: dict, evaluations: int = 6) -> list:
    problem = toy_problem()[0]
    run_searcher(name, settings, problem, evaluations, 0)
    return [e.choice for e in problem.evaluations]


def test_a_users_searcher_runs_with_its_settings(own: Path) -> None:
    name = f"{own}:search"
    assert len(evaluated(name, {})) > 3
    assert evaluated(name, {"least": "0.9"}) == evaluated(name, {"least": 0.9}) != evaluated(name, {})
    (least, words) = settings_of(load_searcher(name))
    assert (least.name, least.default) == ("least", 0.3)
    assert least.help == "smallest share, above 0 and at most 1"
    assert (words.name, words.default, words.help) == ("words", (), "")
    assert may_race(name)
    assert not may_race(f"{own}:exact")


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("evolution", {"population": "many"}, "population is 'many', but must be a whole number."),
        ("evolution", {"population": 1}, "population is 1, but must be at least 2."),
        ("evolution", {"populaton": 3}, "unknown setting 'populaton'. Did you mean 'population'?"),
        ("uniform", {"a": 1}, "unknown setting 'a'. It has no settings."),
        ("tpe", {"startup": "soon"}, "startup is 'soon', but must be a whole number or auto."),
        ("tpe", {"startup": 0}, "startup is 0, but must be at least 1, or auto."),
        ("own:search", {"least": True}, "least is True, but must be a number."),
        ("own:search", {"least": "\x1b[31m"}, "least is '\\x1b[31m', but must be a number."),
        ("own:demanding", {}, "depth is not given, and has no default."),
        ("own:nothing", {}, "has nothing callable named 'nothing'"),
    ],
)
def test_settings_are_checked_in_one_line(own: Path, name: str, settings: dict, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_searcher(name.replace("own", str(own)), settings)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_setting_is_described_and_its_default_is_legal() -> None:
    for name, entry in searchers().items():
        settings = settings_of(entry.load())
        assert all(len(setting.help) > 10 for setting in settings)
        defaults = {setting.name: setting.default for setting in settings}
        assert check_searcher(name, defaults) == defaults


def test_settings_change_a_search_and_defaults_do_not() -> None:
    assert evaluated("evolution", {}, 12) == evaluated("evolution", {"population": 16, "tournament": 4}, 12)
    assert evaluated("evolution", {}, 12) != evaluated("evolution", {"population": 2}, 12)


@pytest.mark.parametrize(("name", "told"), [("broken", "fails: ZeroDivisionError"), ("lazy", "evaluated no policy")])
def test_a_failing_searcher_is_reported_in_one_line(own: Path, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluated(f"{own}:{name}", {})


def test_an_installed_searcher_is_found_by_its_entry_point(own: Path, monkeypatch, capsys) -> None:
    info = own.parent / "own_search-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-search\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[amc.searchers]\nmine = own:search\nbad = own:none\ntpe = own:broken\n")
    monkeypatch.syspath_prepend(str(own.parent))
    assert evaluated("mine", {"least": 0.5}) == evaluated(f"{own}:search", {"least": 0.5})
    assert searchers()["tpe"].own  # amc's names are not taken away
    with pytest.raises(ConfigError, match=r"the searcher bad .*cannot be loaded"):
        load_searcher("bad")
    with pytest.raises(ConfigError, match="Did you mean 'mine'"):
        load_searcher("minee")


def test_a_searcher_of_a_folder_is_trusted_only_when_named(own: Path) -> None:
    config = from_dict({"budget": {"flops": 0.5}, "search": {"searcher": f"{own}:search"}})
    check(config)
    with pytest.raises(BundleError, match=r"would run .*own.py:search: if you trust that, add --trust"):
        refuse_plugins(config, own.parent)


def test_options_of_the_command_line(own: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(own.parent)
    for words, told in (
        (["--searcher-option", "least"], "--searcher-option is 'least', but must be like population=32."),
        (["--searcher-option", "least=2"], "searcher own.py:search: least is 2.0, but must be above 0 and at most 1."),
        (["--searcher-option", "leest=2"], "unknown setting 'leest'. Did you mean 'least'?"),
    ):
        assert main(["search", "--flops", "0.5", "--searcher", "own.py:search", *words]) == 2
        assert told in capsys.readouterr().err
    assert [path.name for path in own.parent.iterdir()] in (["own.py"], ["own.py", "__pycache__"])


def test_code_that_only_a_file_names_is_run_with_trust_only(own: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(own.parent)
    (own.parent / "own.py").write_text("raise SystemError('it was run')")
    Path("c.yaml").write_text("budget: {flops: 0.5}\nsearch: {searcher: 'own.py:search'}\n")
    Path("b.yaml").write_text("budgets: [{flops: 0.5}]\ncommon: {search: {reward: 'own.py:search'}}\n")
    for arguments in (["search", "--config", "c.yaml"], ["batch", "b.yaml"], ["inspect", "--config", "c.yaml"]):
        assert main(arguments) == 2
        assert f"{arguments[-1]} would run own.py:search: if you trust that, add --trust." in capsys.readouterr().err
    for arguments in (["--trust"], ["--searcher", "own.py:search"]):
        assert main(["search", "--config", "c.yaml", *arguments]) == 2
        assert "it was run" in capsys.readouterr().err
    assert not Path("amc-runs").exists()
