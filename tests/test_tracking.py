"""What a run finds is to be seen in TensorBoard and MLflow, once, also after an interruption."""

import json
from pathlib import Path

import pytest

from amc.cli import main
from amc.config import from_dict
from amc.errors import ConfigError
from amc.runtime.journal import Journal
from amc.runtime.tracking import check_log, tracked

EVALUATION = {"choice": [1], "loss": 0.5, "metric": 0.75, "reward": -0.5, "share": 1.0, "error": None, "seconds": 0.1}
FAILED = {"choice": [2], "loss": None, "metric": None, "reward": None, "share": 1.0, "error": "broken", "seconds": 0.1}
LOST = {**EVALUATION, "metric": 0.99, "share": 0.5, "lost": True}
RESULT = {"original": {"macs": 100.0}, "final": {"macs": 50.0, "test": 0.9, "latency_ms": None},
          "latency": {"ratio": {"value": 0.6}}, "proof": [{"met": True}]}  # fmt: skip


def attempt(log: str, folder: Path, *records: dict) -> list[str]:
    """One attempt at a run that records so much; gives what was said."""
    said: list[str] = []
    with (
        Journal(folder / "journal.jsonl") as journal,
        tracked(from_dict({"log": log, "seed": 7}), folder, journal, said.append),
    ):
        for record in records:
            journal.append(**record)
    return said


def two_attempts(log: str, folder: Path) -> None:
    first = [{"kind": "evaluation", **e, "costs": {"macs": 40 + i}, "time": 1000.0 + i}
             for i, e in enumerate([EVALUATION, FAILED, LOST])]  # fmt: skip
    assert attempt(log, folder, *first) == []
    (folder / "result.json").write_text(json.dumps(RESULT))
    won = {**EVALUATION, "metric": 0.875, "share": 0.5, "lost": False}
    rest = [{"kind": "evaluation", **won, "costs": {"macs": 43}, "time": 1003.0},
            {"kind": "training", "done": 0.25, "loss": 2.0}, {"kind": "stage", "name": "search", "seconds": 3.5},
            {"kind": "done"}]  # fmt: skip
    assert attempt(log, folder, *rest) == []


SHOWN = {
    "evaluation/loss": [(1, 0.5), (3, 0.5), (4, 0.5)],
    "evaluation/metric": [(1, 0.75), (3, 0.99), (4, 0.875)],
    "evaluation/best metric": [(1, 0.75), (2, 0.75), (3, 0.75), (4, 0.875)],
    "evaluation/macs": [(1, 40.0), (2, 41.0), (3, 42.0), (4, 43.0)],
    "fine-tuning/loss": [(25, 2.0)],
    "seconds/search": [(1, 3.5)],
    "final/macs": [(1, 50.0)],
    "final/latency ratio": [(1, 0.6)],
    "final/budget met": [(1, 1.0)],
}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_number_once(tmp_path: Path):
    pytest.importorskip("tensorboard")
    two_attempts(f"tensorboard:{tmp_path / 'logs'}", tmp_path / "run")
    found = scalars(tmp_path / "logs" / "run")
    assert {name: found.get(name) for name in SHOWN} == SHOWN


@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_every_number_once_in_one_run(tmp_path: Path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("STORE", f"{tmp_path}/runs.db")
    log = "mlflow:sqlite:///$STORE"
    check_log(log)
    two_attempts(log, tmp_path / "batch" / "run")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs.db")
    (run,) = client.search_runs([client.get_experiment_by_name("batch").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert (run.data.params["seed"], "log" in run.data.params) == ("7", False)
    for name, points in SHOWN.items():
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == points, name


def test_a_whole_run_is_logged_and_its_result_hides_the_address(tmp_path: Path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--flops", "0.5", "--evaluations", "2", "--search-images", "50",
                 "--calibration-images", "64", "--finetune-epochs", "0.5", "--candidates", "1", "--precision",
                 "float32", "--log", "tensorboard:logs",
                 "--out", "run"]) == 0  # fmt: skip
    found, result = scalars(Path("logs/run")), json.loads(Path("run/result.json").read_text())
    assert len(found["evaluation/loss"]) == result["search"]["evaluations"]
    assert found["final/test"] == [(1, result["final"]["test"])]
    assert len(found["fine-tuning/loss"]) > 1
    assert "logs" not in Path("run/result.json").read_text()
    assert main(["search", "--resume", "run"]) == 0
    monkeypatch.setenv("AMC_KEY", str(tmp_path / "another"))
    assert main(["search", "--resume", "run"]) == 2  # it would log to a place that somebody else's folder names


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("tensorbord:logs", "Did you mean 'tensorboard'?"),
        ("tensorboard", "--log tensorboard needs a folder"),
        ("mlflow:", "--log mlflow needs a store"),
        ("wandb:x", "Name one as in tensorboard:FOLDER"),
    ],
)
def test_an_invalid_log_target_is_one_line(log: str, told: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "--flops", "0.5", "--log", log]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind in ("tensorboard", "mlflow"):
        with pytest.raises(ConfigError, match=rf"pip install 'amc-compress\[{kind}\]'"):
            check_log(f"{kind}:place")


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_does_not_answer_is_told_without_its_password():
    pytest.importorskip("mlflow")
    with pytest.raises(
        ConfigError, match=r"--log mlflow:http://me:\*\*\*@127\.0\.0\.1:1: it does not answer: "
    ) as error:
        check_log("mlflow:http://me:secret@127.0.0.1:1")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_lost_log_target_ends_the_logging_and_not_the_run(tmp_path: Path, monkeypatch):
    pytest.importorskip("tensorboard")

    def full(self, values, step, when):
        raise OSError("no space left")

    monkeypatch.setattr("amc.runtime.tracking.TensorBoardSink.put", full)
    said = attempt(f"tensorboard:{tmp_path / 'logs'}", tmp_path / "run", {"kind": "evaluation", **EVALUATION},
                   {"kind": "evaluation", **EVALUATION})  # fmt: skip
    assert said == ["nothing more goes to tensorboard: no space left"]
